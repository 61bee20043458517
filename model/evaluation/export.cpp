#include "model/evaluation/export.h"

#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "model/evaluation/process.h"
#include "model/job/stop_signal.h"
#include "model/units.h"

namespace train_qat {

namespace {

namespace fs = std::filesystem;

// The folder with scripts/export.py above or beside this program, which the build puts into the checkout.
fs::path checkout() {
    std::error_code ignored;
    const fs::path program = fs::read_symlink("/proc/self/exe", ignored);
    constexpr int levels = 3;
    fs::path folder = program.parent_path();
    for (int i = 0; i < levels; ++i, folder = folder.parent_path())
        if (fs::exists(folder / "scripts" / "export.py", ignored)) return folder;
    throw std::runtime_error("-export: scripts/export.py is not in a folder above " + program.string() +
                             "; export with that of a checkout when the run has ended");
}

// As `make` takes it: PYTHON, else that with the packages for exports (README.md), else the system's.
std::string python(const fs::path& root) {
    const char* named = std::getenv("PYTHON");
    if (named != nullptr && *named != '\0') return named;
    const fs::path made = root / "out" / "tools" / "bin" / "python";
    std::error_code ignored;
    return fs::exists(made, ignored) ? made.string() : "/usr/bin/python3";
}

// A SentencePiece model, a tokenizer.json or their folder; "" where there is none.
std::string tokenizer_of(const Options& options) {
    if (!options.data.tokenizer.empty() || options.initial_model.empty()) return options.data.tokenizer;
    std::error_code ignored;
    for (const char* name : {"tokenizer.json", "tokenizer.model"})
        if (fs::exists(fs::path(options.initial_model) / name, ignored)) return options.initial_model;
    return "";
}

std::string last_line(const std::string& text) {
    const std::string lines = text.substr(0, text.find_last_not_of("\r\n") + 1);
    return lines.substr(lines.find_last_of('\n') + 1);  // npos + 1 is 0
}

// Of a script that has failed: its own line, or what its Python says of itself.
std::string reason_of(const ProcessResult& result, const std::string& python) {
    const std::string line = one_line(last_line(result.errors)), of_script = "export.py: error: ";
    const std::string other = "name another Python with the variable PYTHON";
    if (line.rfind(of_script, 0) != 0)
        return python + " ended with exit code " + std::to_string(result.exit_code) +
               (line.empty() ? "" : " (" + line + ")") + "; " + other;
    const bool lacks_package = line.find("has no package") != std::string::npos;
    return line.substr(of_script.size()) + (lacks_package ? "; or " + other : "");
}

// what: a checkpoint, or settings with --check behind them.
// False: it was stopped.
bool run_script(const Options& options, const std::string& format, const std::vector<std::string>& what) {
    const fs::path root = checkout();
    std::vector<std::string> command = {python(root), (root / "scripts" / "export.py").string()};
    command.insert(command.end(), what.begin(), what.end());
    for (const std::string& text : {std::string("--to"), format, std::string("-o"),
                                    (fs::path(options.output_directory) / format).string()})
        command.push_back(text);
    const std::string tokenizer = tokenizer_of(options);
    if (!tokenizer.empty()) {
        command.push_back("--tokenizer");
        command.push_back(tokenizer);
    }
    const std::string prefix = "-export " + format + ": ";
    ProcessResult result;
    try {
        result = run_process(command);
    } catch (const std::runtime_error& error) {
        throw std::runtime_error(prefix + error.what() + "; name a Python with the variable PYTHON");
    }
    if (result.exit_code == 0) return true;
    if (stop_requested()) return false;
    throw std::runtime_error(prefix + reason_of(result, command[0]));
}

}  // namespace

void check_exports(const Options& options, const nlohmann::ordered_json& settings) {
    for (const std::string& format : options.exports) {
        const fs::path made = fs::path(options.output_directory) / format;
        if (fs::symlink_status(made).type() != fs::file_type::not_found)
            throw std::runtime_error("-export " + format + ": " + made.string() +
                                     " is there already; move it away, or leave " + format + " out");
        run_script(options, format, {settings.dump(), "--check"});
    }
}

bool write_exports(const Options& options, std::ostream& console) {
    console << std::flush;  // the script writes to the same place
    for (const std::string& format : options.exports) {
        if (run_script(options, format, {options.output_directory})) continue;
        console << "stopped; the run is done, its export is not: scripts/export.py makes it" << std::endl;
        return false;
    }
    return true;
}

}  // namespace train_qat
