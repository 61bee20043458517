// How OpenMP's threads wait for each other.
#pragma once

namespace train_qat {

// GNU's OpenMP lets threads spin for milliseconds at the end of a parallel loop. When another program wants a
// core, the spinning threads take it from the very thread they wait for, and a training step becomes up to
// ten times slower. This limits spinning to some microseconds. The library reads its settings when it is
// loaded, so the program starts itself again once, with GOMP_SPINCOUNT set; it does nothing where the user
// has set GOMP_SPINCOUNT or OMP_WAIT_POLICY. Call first thing in main.
void limit_openmp_spinning(char** arguments);

}  // namespace train_qat
