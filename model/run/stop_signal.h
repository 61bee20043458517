// Ends a run in order when the user or a job manager asks for it.
#pragma once

namespace train_qat {

// From now on Ctrl-C, TERM and USR1 (mpirun passes it on and, unlike after the others, waits) only ask to
// stop; a second signal ends the process at once, unless it comes with the first: mpirun may send several.
void catch_stop_signals();

// Whether one of them has come.
bool stop_requested();

}  // namespace train_qat
