// Mutates well-formed inputs of each target, keeps those that reach code no other has reached, and reports what
// ends otherwise than by std::runtime_error.
//
//   train_qat_fuzz [--seconds S | --runs N] [--seed X] [--corpus DIRECTORY] [--findings DIRECTORY] [TARGET ...]
//
// Each target runs in a process of its own. The corpus is DIRECTORY/TARGET/*: read first, never written. A finding
// is the input that ended the process, or took more than ten seconds: FINDINGS/TARGET-N. The last line reads
// `N passed, N failed`.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <new>
#include <random>
#include <stdexcept>

#include "test/fuzz/targets.h"

namespace {

std::array<uint8_t, 1 << 16> reached;  // by the input at hand, hashed addresses

}  // namespace

// Called by g++'s -fsanitize-coverage=trace-pc in every basic block of what is fuzzed.
extern "C" void __sanitizer_cov_trace_pc() {
    const auto address = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
    reached[(address ^ (address >> 16)) & 0xffff] = 1;
}

namespace train_qat::fuzz {

namespace {

namespace fs = std::filesystem;

constexpr size_t largest_input = 1 << 14;
constexpr unsigned longest_seconds = 10;  // for one input

struct Request {
    double seconds = 20;  // of each target
    int64_t runs = 0;     // of each target; 0: as many as the seconds allow
    uint64_t seed = 1;
    std::string corpus, findings = "fuzz_findings";
    std::vector<std::string> names;
};

// What a target's process shares with the one that watches it.
struct Shared {
    int64_t runs;
    int64_t kept;  // inputs that reached something new
    size_t bytes;
    char input[largest_input];
};

std::string read_file(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

class Mutator {
  public:
    explicit Mutator(uint64_t seed) : random_(seed) {}

    size_t below(size_t limit) { return static_cast<size_t>(random_() % limit); }

    std::string mutated(std::string input, const std::vector<std::string>& pool) {
        for (size_t count = 1 + below(4); count > 0; --count) change(input, pool);
        if (input.size() > largest_input) input.resize(largest_input);
        return input;
    }

  private:
    void change(std::string& input, const std::vector<std::string>& pool) {
        static const char* const words[] = {"nan",
                                            "-1",
                                            "1e999",
                                            "18446744073709551616",
                                            "-9223372036854775809",
                                            "null",
                                            "[]",
                                            "{}",
                                            "\"\"",
                                            "true",
                                            "\xff",
                                            "\\ud800",
                                            "0",
                                            "[[[[[[[[",
                                            "1e-400"};
        static const int64_t numbers[] = {0,      1,         -1,         0x7f,      0xff,     0x7fff,
                                          0xffff, INT32_MAX, UINT32_MAX, INT64_MAX, INT64_MIN};
        const size_t at = below(input.size() + 1), left = input.size() - at;
        const size_t length = left == 0 ? 0 : 1 + below(std::min<size_t>(left, 32));
        switch (below(8)) {
            case 0:
                if (left > 0) input[at] = static_cast<char>(input[at] ^ (1 << below(8)));
                break;
            case 1:
                if (left > 0) input[at] = static_cast<char>(below(256));
                break;
            case 2:
                input.erase(at, length);
                break;
            case 3:
                input.insert(at, input.substr(below(input.size() + 1), 1 + below(32)));
                break;
            case 4:
                input.insert(at, words[below(std::size(words))]);
                break;
            case 5:
                input.replace(at, length, words[below(std::size(words))]);
                break;
            case 6: {
                const int64_t number = numbers[below(std::size(numbers))];
                std::memcpy(input.data() + at, &number, std::min<size_t>(left, size_t{1} << below(4)));
                break;
            }
            default: {
                const std::string& other = pool[below(pool.size())];
                input = input.substr(0, at) + other.substr(below(other.size() + 1));
            }
        }
    }

    std::mt19937_64 random_;
};

// In the process of the target: until its time or its runs are over.
void explore(const Target& target, const Request& request, Shared& shared, const std::string& directory) {
    std::vector<std::string> pool = target.seeds;
    std::error_code none;
    const fs::path corpus = request.corpus.empty() ? fs::path() : fs::path(request.corpus) / target.name;
    for (const auto& entry : fs::directory_iterator(corpus, none))
        pool.push_back(read_file(entry.path()).substr(0, largest_input));
    std::sort(pool.begin() + static_cast<std::ptrdiff_t>(target.seeds.size()), pool.end());
    const size_t given = pool.size();
    std::array<uint8_t, 1 << 16> known{};
    Mutator mutator(request.seed);
    const std::string path = directory + "/input";
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(request.seconds);
    while (request.runs > 0 ? shared.runs < request.runs : std::chrono::steady_clock::now() < end) {
        const auto run = static_cast<size_t>(shared.runs);
        const std::string input =
            run < given ? pool[run] : mutator.mutated(pool[mutator.below(pool.size())], pool);
        std::memcpy(shared.input, input.data(), input.size());
        shared.bytes = input.size();
        std::ofstream(path, std::ios::binary | std::ios::trunc) << input;
        reached.fill(0);
        ::alarm(longest_seconds);
        try {
            target.read(input, path);
        } catch (const std::runtime_error&) {
        }
        ::alarm(0);
        bool is_new = false;
        for (size_t i = 0; i < known.size(); ++i)
            if (reached[i] != 0 && known[i] == 0) known[i] = 1, is_new = true;
        if (is_new && run >= given) {
            pool.push_back(input);
            ++shared.kept;
        }
        ++shared.runs;
    }
}

// Whether nothing was found.
bool run_target(const Target& target, const Request& request) {
    void* const memory =
        ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    Shared& shared = *new (memory) Shared();
    std::string directory = (fs::temp_directory_path() / "train_qat_fuzz_XXXXXX").string();
    if (::mkdtemp(directory.data()) == nullptr) throw std::runtime_error(directory + ": cannot be created");
    const auto start = std::chrono::steady_clock::now();
    std::fflush(stdout);
    const pid_t child = ::fork();
    if (child == 0) {
        explore(target, request, shared, directory);
        ::_exit(0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    fs::remove_all(directory);
    std::printf("%-16s %9lld executions in %6.1f s, %lld inputs kept\n", target.name.c_str(),
                static_cast<long long>(shared.runs), seconds, static_cast<long long>(shared.kept));
    if (status != 0) {
        fs::create_directories(request.findings);
        const std::string name = request.findings + "/" + target.name + "-" + std::to_string(request.seed);
        std::ofstream(name, std::ios::binary) << std::string(shared.input, shared.bytes);
        std::printf("%-16s FINDING: %s %d; its input is %s\n", target.name.c_str(),
                    WIFSIGNALED(status) ? "signal" : "exit status",
                    WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), name.c_str());
    }
    ::munmap(memory, sizeof(Shared));
    return status == 0;
}

Request read_request(const std::vector<std::string>& arguments) {
    Request request;
    for (size_t i = 0; i < arguments.size(); ++i) {
        const auto value = [&] {
            return i + 1 < arguments.size() ? arguments[++i] : throw std::runtime_error(arguments[i]);
        };
        if (arguments[i] == "--seconds")
            request.seconds = std::stod(value());
        else if (arguments[i] == "--runs")
            request.runs = std::stoll(value());
        else if (arguments[i] == "--seed")
            request.seed = std::stoull(value());
        else if (arguments[i] == "--corpus")
            request.corpus = value();
        else if (arguments[i] == "--findings")
            request.findings = value();
        else
            request.names.push_back(arguments[i]);
    }
    return request;
}

int run(const std::vector<std::string>& arguments) {
    const Request request = read_request(arguments);
    std::vector<Target> targets = file_targets();
    for (Target& target : settings_targets()) targets.push_back(std::move(target));
    int passed = 0, failed = 0;
    for (const Target& target : targets) {
        const auto& names = request.names;
        if (!names.empty() && std::find(names.begin(), names.end(), target.name) == names.end()) continue;
        ++(run_target(target, request) ? passed : failed);
    }
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 && passed > 0 ? 0 : 1;
}

}  // namespace

}  // namespace train_qat::fuzz

int main(int argc, char** argv) {
    return train_qat::fuzz::run({argv + 1, argv + argc});
}
