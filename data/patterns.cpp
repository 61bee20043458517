#include "data/patterns.h"

#include <glob.h>
#include <sys/stat.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace train_qat {
namespace {

// True if `path` names something; `is_directory` says what.
bool exists(const std::string& path, bool& is_directory) {
    struct stat status;
    if (::stat(path.c_str(), &status) != 0) return false;
    is_directory = S_ISDIR(status.st_mode);
    return true;
}

std::vector<std::string> expand_pattern(const std::string& pattern) {
    bool is_directory = false;
    // A plain path, even if it holds characters that are special in globs.
    if (exists(pattern, is_directory)) {
        if (!is_directory) return {pattern};
        throw std::runtime_error(pattern + ": is a directory, expected token shards; write '" + pattern +
                                 (pattern.back() == '/' ? "" : "/") + "*.bin'");
    }
    glob_t matches{};
    const int result = ::glob(pattern.c_str(), 0, nullptr, &matches);
    std::vector<std::string> paths;
    if (result == 0) paths.assign(matches.gl_pathv, matches.gl_pathv + matches.gl_pathc);
    ::globfree(&matches);
    if (paths.empty()) {
        throw std::runtime_error("no token shard matches '" + pattern +
                                 "'; check the path, or make shards from text with data/prepare.py");
    }
    return paths;
}

}  // namespace

std::vector<std::string> expand_patterns(const std::string& patterns) {
    bool is_directory = false;
    std::vector<std::string> paths;
    if (exists(patterns, is_directory)) {  // one path, even if it holds commas
        paths = expand_pattern(patterns);
    } else {
        for (size_t begin = 0; begin <= patterns.size();) {
            const size_t comma = std::min(patterns.find(',', begin), patterns.size());
            const std::string pattern = patterns.substr(begin, comma - begin);
            begin = comma + 1;
            if (pattern.empty()) continue;  // a trailing or doubled comma
            for (std::string& path : expand_pattern(pattern)) paths.push_back(std::move(path));
        }
    }
    if (paths.empty()) throw std::runtime_error("no token shards given: the pattern is empty");
    std::sort(paths.begin(), paths.end());
    paths.erase(std::unique(paths.begin(), paths.end()), paths.end());
    return paths;
}

}  // namespace train_qat
