// Checksums of all tokens of the shards that a run reads, computed once and kept.
//
// A checkpoint keeps them, so that training goes on with the same tokens and not with others of the same
// number. Reading 100 GB takes a minute or more, so a checksum is kept in a record beside its shard,
// DIRECTORY/.NAME.checksum, or where that cannot be written in the run's directory; it holds as long as the
// file has the size, the inode and the times of its last modification and change that it had then: no write
// leaves all of them as they were. A header field of the shard could not know of later writes.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

namespace train_qat {

// Of each shard: XXH3, 64 bits, of everything behind its header of header_bytes, so that a shard with another
// header is the same. Records that do not hold are computed anew by several threads, which is said on `log` when it takes
// long, and written at once: what is interrupted goes on there. directory: for the records that have no place
// beside their shards; created when it is needed. std::runtime_error: a file cannot be read or has changed meanwhile.
std::vector<uint64_t> checksums_of_shards(const std::vector<std::string>& paths, int64_t header_bytes,
                                          const std::string& directory, std::ostream& log);

}  // namespace train_qat
