#include "model/storage/checkpoint.h"

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <iostream>
#include <limits>
#include <set>
#include <sstream>

#include "model/storage/checksum.h"
#include "test/model/storage/checkpoint_fixture.h"
#include "test/support/catch.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"

using namespace train_qat;
using namespace train_qat::test;
namespace fs = std::filesystem;

TEST_CASE("a checkpoint gives back every byte", "[checkpoint]") {
    const TemporaryDirectory directory;
    const std::string output = directory / "runs/one";  // created with its parents
    SmallRun run(10);
    const std::string path = run.save(output, 1234);
    CHECK(path == output + "/step_00001234");

    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(path)) names.insert(entry.path().filename().string());
    CHECK(names == std::set<std::string>{"manifest.json", "model.safetensors", "optimizer.safetensors"});
    CHECK(std::distance(fs::directory_iterator(output), {}) == 1);  // nothing hidden is left

    for (const std::string& from : {path, output}) {
        const CheckpointReader reader(from, alone());
        CHECK(reader.path() == path);
        CHECK(reader.step() == 1234);
        CHECK(reader.state() == run.contents(1234).state);
        CHECK(reader.passed_over().empty());
        SmallRun loaded(99);
        CHECK(load_error(from, loaded).empty());
        CHECK(loaded.model.contents() == run.model.contents());
        CHECK(loaded.optimizer.contents() == run.optimizer.contents());
    }
    CHECK(SafetensorsFile(path + "/model.safetensors").metadata().at("format") == "pt");
}

TEST_CASE("the manifest says what it should", "[checkpoint]") {
    const TemporaryDirectory directory;
    SmallRun run;
    const std::string path = run.save(directory / "out", 3);
    const auto manifest = nlohmann::json::parse(read_bytes(path + "/manifest.json"));
    CHECK(manifest["format"] == "train_qat checkpoint");
    CHECK(manifest["version"] == 2);
    CHECK(manifest["step"] == 3);
    CHECK(manifest["state"]["loader"]["position"] == 77);
    CHECK(manifest["written"].get<std::string>().size() == std::string("2025-01-31T12:00:00Z").size());
    for (const std::string name : {"model.safetensors", "optimizer.safetensors"}) {
        CHECK(manifest["files"][name]["bytes"] == fs::file_size(path + "/" + name));
        CHECK(manifest["files"][name]["xxh3_64_rows"] ==
              checksum_text(checksum_by_rows(read_bytes(path + "/" + name))));
    }
    // Sorted keys, no spaces, without "checksum" and "written".
    auto body = manifest;
    body.erase("checksum");
    body.erase("written");
    CHECK(manifest["checksum"] == checksum_text(checksum_of(body.dump())));
}

TEST_CASE("the state survives numbers and text that JSON cannot hold", "[checkpoint]") {
    const TemporaryDirectory directory;
    SmallRun run;
    CheckpointContents contents = run.contents(0);
    contents.state = {{"nan", std::nan("")},
                      {"tenth", 0.1},
                      {"tiny", 5e-324},
                      {"one", 1.0},
                      {"seed", std::numeric_limits<uint64_t>::max()},
                      {"path", "\xff\xfe"},
                      {"empty", nlohmann::json::object()}};
    const std::string path = save_checkpoint(directory / "out", backend(), alone(), contents);
    const CheckpointReader reader(path, alone());
    CHECK(reader.state()["nan"].is_null());
    CHECK(reader.state()["tenth"] == 0.1);
    CHECK(reader.state()["tiny"].get<double>() == 5e-324);
    CHECK(reader.state()["one"].is_number_float());
    CHECK(reader.state()["seed"] == std::numeric_limits<uint64_t>::max());
    CHECK(reader.state()["path"] == "\xef\xbf\xbd\xef\xbf\xbd");
    CHECK(reader.state()["empty"].is_object());
    contents.state = 7;
    CHECK_THROWS_AS(save_checkpoint(directory / "out", backend(), alone(), contents), std::logic_error);
    CHECK_THROWS_AS(run.save(directory / "out", -1), std::logic_error);
}

TEST_CASE("every changed byte of a checkpoint is noticed", "[checkpoint]") {
    const TemporaryDirectory directory;
    SmallRun run(2), scratch(3);
    const std::string path = run.save(directory / "out", 8);
    for (const std::string name : {"manifest.json", "model.safetensors", "optimizer.safetensors"}) {
        const std::string file = path + "/" + name;
        const std::string bytes = read_bytes(file);
        // The time of writing is not protected: checkpoints of equal content shall have equal checksums.
        const size_t time = name == "manifest.json" ? bytes.find("\"written\": \"") + 12 : bytes.size();
        for (size_t i = 0; i < bytes.size(); ++i) {
            if (i >= time && bytes[time] != '"' && i < bytes.find('"', time)) continue;
            std::string damaged = bytes;
            damaged[i] = static_cast<char>(damaged[i] ^ 1);
            write_bytes(file, damaged);
            const std::string error = load_error(path, scratch);
            INFO(name << " byte " << i << " '" << bytes[i] << "'");
            CHECK(mentions(error, {path}));
        }
        write_bytes(file, bytes);
    }
    CHECK(load_error(path, scratch).empty());
    CHECK(scratch.model.contents() == run.model.contents());
}

TEST_CASE("every truncation of a checkpoint is noticed", "[checkpoint]") {
    const TemporaryDirectory directory;
    SmallRun run(2), scratch(3);
    const std::string output = directory / "out";
    const std::string path = run.save(output, 8);
    for (const std::string name : {"manifest.json", "model.safetensors", "optimizer.safetensors"}) {
        const std::string file = path + "/" + name;
        const std::string bytes = read_bytes(file);
        const size_t end =
            name == "manifest.json" ? bytes.size() - 1 : bytes.size();  // its last byte is a newline
        for (size_t length = 0; length < end; length += 7) {
            write_bytes(file, bytes.substr(0, length));
            INFO(name << " length " << length);
            CHECK(mentions(load_error(path, scratch), {file}));
            std::vector<std::string> passed_over;
            CHECK_FALSE(find_latest_checkpoint(output, &passed_over));
            CHECK(passed_over.size() == 1);
        }
        fs::remove(file);
        CHECK(mentions(load_error(path, scratch), {path, name}));
        CHECK_FALSE(find_latest_checkpoint(output));
        write_bytes(file, bytes);
    }
    CHECK(find_latest_checkpoint(output) == path);
}

TEST_CASE("loading refuses other tensors than the saved ones", "[checkpoint]") {
    const TemporaryDirectory directory;
    SmallRun run;
    const std::string path = run.save(directory / "out", 1);
    const CheckpointReader reader(path, alone());
    auto wanted = run.model.tensors();
    wanted.pop_back();
    CHECK(mentions(error_of([&] { reader.load_model(backend(), alone(), wanted); }),
                   {path + "/model.safetensors", "layer.weight_scale", "does not have"}));
    wanted = run.model.tensors();
    wanted[0].name = "model.norm.bias";
    CHECK(mentions(error_of([&] { reader.load_model(backend(), alone(), wanted); }),
                   {path + "/model.safetensors", "has no tensor \"model.norm.bias\"", "options"}));
    wanted = run.model.tensors();
    wanted[1].tensor.shape[0] = 3;
    wanted[1].tensor.shape[1] = 5;
    CHECK(mentions(error_of([&] { reader.load_model(backend(), alone(), wanted); }),
                   {path, "layer.weight", "expected F32 [3,5]", "found F32 [5,3]", "another size"}));
    wanted = run.model.tensors();
    wanted[2].tensor.dtype = DType::int32;
    CHECK(mentions(error_of([&] { reader.load_model(backend(), alone(), wanted); }),
                   {path, "layer.weight_scale", "expected I32 [5]", "found F32 [5]"}));
    CHECK(mentions(error_of([&] { reader.load_optimizer(backend(), alone(), {}); }),
                   {"optimizer.safetensors", "first_moment"}));
}

TEST_CASE("directories that are no checkpoint are refused with the reason", "[checkpoint]") {
    const TemporaryDirectory directory;
    const auto open_error = [](const std::string& path) {
        return error_of([&] { CheckpointReader reader(path, alone()); });
    };
    CHECK(mentions(open_error(directory / "absent"), {"absent", "no such directory"}));
    CHECK(mentions(open_error(directory.write("file", "")), {"file", "no such directory"}));
    fs::create_directory(directory / "empty");
    CHECK(mentions(open_error(directory / "empty"), {"empty", "holds no checkpoint"}));
    CHECK_FALSE(find_latest_checkpoint(directory / "absent"));

    SmallRun run;
    const std::string path = run.save(directory / "out", 1);
    const auto original = nlohmann::json::parse(read_bytes(path + "/manifest.json"));
    const auto with = [&](const std::string& key, const nlohmann::json& value) {
        auto manifest = original;
        manifest[key] = value;
        auto body = manifest;
        body.erase("checksum");
        body.erase("written");
        manifest["checksum"] = checksum_text(checksum_of(body.dump()));
        write_bytes(path + "/manifest.json", manifest.dump());
        return open_error(path);
    };
    CHECK(with("written", "yesterday").empty());
    CHECK(mentions(with("version", 3), {"manifest.json", "version 3", "newer", "use a newer train_qat"}));
    CHECK(mentions(with("version", 1), {"manifest.json", "version 1", "older", "train_qat that wrote it"}));
    CHECK(mentions(with("version", 0), {"manifest.json", "unknown version 0"}));
    CHECK(mentions(with("version", "2"), {"manifest.json", "no version"}));
    CHECK(mentions(with("format", "another trainer"), {"manifest.json", "not a checkpoint of train_qat"}));
    CHECK(mentions(with("step", "one"), {"manifest.json", "damaged"}));
    CHECK(mentions(with("files", nlohmann::json::array({7})), {"manifest.json", "damaged"}));
    CHECK(mentions(with("files", {{"model.safetensors", {{"bytes", 1}, {"xxh3_64_rows", "12"}}}}),
                   {"damaged", "no checksum"}));
    CHECK(with("files", nlohmann::json::object()).empty());
    CHECK(mentions(load_error(path, run), {path, "has no model.safetensors"}));
    write_bytes(path + "/manifest.json", "[1]");
    CHECK(mentions(open_error(path), {"manifest.json", "damaged"}));
    write_bytes(path + "/manifest.json", std::string("{\"a\":\n\x01", 7));
    CHECK(mentions(open_error(path), {"manifest.json", "damaged"}));
    CHECK(mentions(open_error(directory / "out"), {"out", "no valid checkpoint", "manifest.json"}));
}

TEST_CASE("a save that fails leaves everything as it was", "[checkpoint]") {
    const TemporaryDirectory directory;
    const std::string output = directory / "out";
    SmallRun run(1), other(5);
    run.save(output, 10);
    const auto before = snapshot(output);
    const auto complete = fs::file_size(output + "/step_00000010/model.safetensors");
    const auto manifest = fs::file_size(output + "/step_00000010/manifest.json");
    REQUIRE(manifest > complete);  // so the last limit lets both data files pass
    for (const rlim_t limit : {uintmax_t{0}, uintmax_t{100}, complete - 1, manifest - 1}) {
        for (const int64_t step : {10, 11}) {
            std::string error;
            {
                const FileSizeLimit full_disk(limit);
                error = error_of([&] { other.save(output, step, true); });
            }
            INFO("limit " << limit << ", step " << step);
            CHECK(mentions(error, {"partial", "ulimit"}));
            CHECK(snapshot(output) == before);
        }
    }
    other.save(output, 11);
    CHECK(steps_of(output) == std::vector<int64_t>{10, 11});
}

TEST_CASE("an existing step is not overwritten unless asked to", "[checkpoint]") {
    const TemporaryDirectory directory;
    const std::string output = directory / "out";
    SmallRun run(1), other(5), loaded(9);
    run.save(output, 10);
    const auto before = snapshot(output);
    CHECK(mentions(error_of([&] { other.save(output, 10); }), {"step_00000010", "exists already", "resume"}));
    CHECK(snapshot(output) == before);

    const std::string path = other.save(output, 10, true);
    CHECK(load_error(path, loaded).empty());
    CHECK(loaded.model.contents() == other.model.contents());
    CHECK(std::distance(fs::directory_iterator(output), {}) == 1);

    // What is no checkpoint of ours is never removed.
    fs::create_directory(output + "/step_00000020");
    write_bytes(output + "/step_00000020/thesis.tex", "precious");
    CHECK(mentions(error_of([&] { run.save(output, 20); }),
                   {"step_00000020", "not a valid one", "move it away"}));
    std::ostringstream warning;
    std::streambuf* const standard_error = std::cerr.rdbuf(warning.rdbuf());
    run.save(output, 20, true);
    std::cerr.rdbuf(standard_error);
    CHECK(warning.str().find("train_qat: warning: " + output + "/step_00000020 was no valid checkpoint") ==
          0);
    CHECK(CheckpointReader(output, alone()).step() == 20);
    CHECK(read_bytes(output + "/step_00000020.unreadable-" + std::to_string(::getpid()) + "/thesis.tex") ==
          "precious");
    write_bytes(output + "/step_00000030", "a file");
    CHECK(mentions(error_of([&] { run.save(output, 30); }), {"step_00000030", "move it away"}));
}

TEST_CASE("an output directory that cannot be one is refused", "[checkpoint]") {
    const TemporaryDirectory directory;
    SmallRun run;
    const std::string file = directory.write("file", "precious");
    CHECK(mentions(error_of([&] { run.save(file, 1); }), {file, "cannot save the checkpoint of step 1"}));
    CHECK(mentions(error_of([&] { run.save(file + "/below", 1); }), {file, "cannot save"}));
    CHECK(read_bytes(file) == "precious");
}

TEST_CASE("a checkpoint that cannot fit is refused before anything is written", "[checkpoint]") {
    const TemporaryDirectory directory;
    const std::string output = directory / "out";
    SmallRun run;
    run.save(output, 1);
    const auto before = snapshot(output);
    CheckpointContents contents = run.contents(2);
    // Claims 4 PB; refused before its memory would be read.
    contents.model[0].tensor.shape[0] = int64_t{1} << 50;
    const std::string error = error_of([&] { save_checkpoint(output, backend(), alone(), contents); });
    CHECK(mentions(error,
                   {output, "not enough space", "step 2", "4503.6 TB", "are available", "free some space"}));
    CHECK(snapshot(output) == before);
}
