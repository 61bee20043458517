// How ranks that nothing connects yet agree on a few bytes: through files that all of them can see.
#pragma once

#include <functional>
#include <string>

namespace train_qat {

// Returns, on all ranks, what make() returned on rank 0; the others do not call it. All ranks of a job call
// it together, with the same path, size and timeout; jobs that run at the same time need paths of their own.
// `path` and, beside it, path.rank1, path.rank2 ... are written, and removed at the end.
//
// Whatever an earlier job has left there is never taken for this job's: every rank invents a number and
// writes it to path.rank<r>; rank 0 writes its bytes to `path` together with all numbers that it has read, as
// often as these change; a rank takes the bytes only beside its own number, and confirms that with rank 0's
// number in its own file; rank 0 returns when all have confirmed. Files are replaced as a whole, so nobody
// reads half of one.
//
// Throws std::runtime_error in one line: the directory cannot be written; after timeout_seconds with the
// ranks that are missing; another process is already the same rank at the same path.
std::string share_by_file(const std::string& path, int rank, int size,
                          const std::function<std::string()>& make, double timeout_seconds);

}  // namespace train_qat
