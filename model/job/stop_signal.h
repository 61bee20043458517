// Ends the program when the user or a job manager asks for it: at once, or in order where there is work to save.
#pragma once

namespace train_qat {

// From now on Ctrl-C, TERM, USR1 (mpirun passes it on and, unlike after the others, waits) and HUP (unless nohup has it
// ignored) end the process at once with exit code 128 + signal, and one line on the standard error output if it is to say
// so: nothing would be lost.
void end_on_stop_signals(bool says_so);

// From now on they only ask to stop, for what has been trained must be saved; a second signal ends the process at once,
// unless it comes with the first: mpirun may send several. Nor does it end the process any more when whoever reads its
// output is gone, as after a Ctrl-C that `tee` gets too.
void save_on_stop_signals();

// Whether one of them has come since.
bool stop_requested();

// Of a process that has stopped for it: 128 + the signal; for one that another rank's signal has stopped, as after Ctrl-C.
int stop_exit_code();

}  // namespace train_qat
