#include "model/storage/checkpoint_directory.h"

#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "test/model/storage/checkpoint_fixture.h"
#include "test/support/catch.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"

using namespace train_qat;
using namespace train_qat::test;
namespace fs = std::filesystem;

namespace {

// A process id that no process has: of a child that has ended.
pid_t dead_process() {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(0);
    ::waitpid(child, nullptr, 0);
    return child;
}

}  // namespace

TEST_CASE("the latest checkpoint is the highest valid step", "[checkpoint]") {
    const TemporaryDirectory directory;
    const std::string output = directory / "out";
    SmallRun run;
    for (const int64_t step : {20, 9, 100}) run.save(output, step);
    run.save(output, 123'456'789);  // nine digits sort after eight
    CHECK(steps_of(output) == std::vector<int64_t>{9, 20, 100, 123'456'789});
    CHECK(find_latest_checkpoint(output) == output + "/step_123456789");

    // Later steps that don't count: a crash before the manifest, a renamed directory, a link, a file, odd
    // names.
    fs::create_directory(output + "/step_200000000");
    fs::copy(output + "/step_00000009", output + "/step_300000000");
    fs::create_directory_symlink(output + "/step_00000009", output + "/step_400000000");
    write_bytes(output + "/step_500000000", "");
    for (const char* name :
         {"/step_1", "/step_000000010", "/step_-0000001", "/step_0000001x", "/xstep_00000001"})
        fs::copy(output + "/step_00000009", output + name);
    std::vector<std::string> passed_over;
    CHECK(find_latest_checkpoint(output, &passed_over) == output + "/step_123456789");
    REQUIRE(passed_over.size() == 2);
    CHECK(mentions(passed_over[0], {"step_200000000", "no manifest.json"}));
    CHECK(mentions(passed_over[1], {"step_300000000", "step_00000009", "renamed"}));
    const CheckpointReader reader(output, alone());
    CHECK(reader.step() == 123'456'789);
    CHECK(reader.passed_over() == passed_over);
    // Named directly, a checkpoint may have any name.
    CHECK(CheckpointReader(output + "/step_1", alone()).step() == 9);
}

TEST_CASE("the name of a checkpoint has at least eight digits", "[checkpoint]") {
    CHECK(checkpoint_name(0) == "step_00000000");
    CHECK(checkpoint_name(1234) == "step_00001234");
    CHECK(checkpoint_name(123'456'789) == "step_123456789");
    CHECK(step_of_checkpoint_name("step_00001234") == 1234);
    CHECK(step_of_checkpoint_name("step_9223372036854775807") == INT64_MAX);
    for (const char* name : {"", "step_", "step_1", "step_000000001", "step_00001234x", "Step_00001234",
                             "step_9223372036854775808", "step_00001234.partial-1", ".step_00001234"})
        CHECK(step_of_checkpoint_name(name) == -1);
}

TEST_CASE("what killed runs left behind is cleaned up by the next save", "[checkpoint]") {
    const TemporaryDirectory directory;
    const std::string output = directory / "out";
    SmallRun run(1), loaded(9);
    run.save(output, 10);
    run.save(output, 20);
    const std::string dead = std::to_string(dead_process());
    const auto make = [&](const std::string& name) {
        fs::create_directory(output + "/" + name);
        write_bytes(output + "/" + name + "/model.safetensors", "half");
        return output + "/" + name;
    };
    const std::vector<std::string> stale = {make(".step_00000030.partial-" + dead),
                                            make(".step_00000007.partial-" + std::to_string(::getpid())),
                                            make(".step_00000010.replaced-" + dead)};
    const std::vector<std::string> foreign = {
        make(".step_00000030.partial-1"),  // a living process
        make(".step_00000030.partial-"),      make(".step_00000030.partial-12x"),
        make(".step_30.partial-" + dead),     make(".step_00000030.backup-" + dead),
        make("step_00000030.partial-" + dead)};
    write_bytes(output + "/.step_00000031.partial-" + dead, "a file");
    // Killed between moving the old checkpoint away and the new one in.
    fs::rename(output + "/step_00000020", output + "/.step_00000020.replaced-" + dead);
    CHECK(find_latest_checkpoint(output) == output + "/step_00000010");  // leftovers never count

    run.save(output, 40);
    for (const auto& path : stale) CHECK_FALSE(fs::exists(path));
    for (const auto& path : foreign) CHECK(read_bytes(path + "/model.safetensors") == "half");
    CHECK(fs::exists(output + "/.step_00000031.partial-" + dead));
    CHECK(steps_of(output) == std::vector<int64_t>{10, 20, 40});
    CHECK(load_error(output + "/step_00000020", loaded).empty());
}

TEST_CASE("pruning keeps the newest and the protected, and nothing foreign is touched", "[checkpoint]") {
    const TemporaryDirectory directory;
    const std::string output = directory / "out";
    SmallRun run;
    for (int64_t step = 10; step <= 60; step += 10) run.save(output, step);
    fs::create_directory(output + "/step_00000001");  // no manifest
    write_bytes(output + "/step_00000001/notes", "precious");
    write_bytes(output + "/step_00000002", "a file");
    fs::copy(output + "/step_00000010", output + "/step_00000003");  // another step's manifest
    fs::copy(output + "/step_00000010", output + "/best");
    fs::create_directory_symlink(output + "/best", output + "/step_00000004");
    fs::resize_file(output + "/step_00000060/model.safetensors", 5);  // damaged: neither counted nor removed
    const auto before = snapshot(output);

    CHECK(prune_checkpoints(output, 0).empty());
    CHECK(prune_checkpoints(output, 5).empty());
    CHECK(prune_checkpoints(output, INT64_MAX).empty());
    CHECK(snapshot(output) == before);

    const std::vector<int64_t> branch_points = {20, 999};
    CHECK(prune_checkpoints(output, 2, branch_points) ==
          std::vector<std::string>{output + "/step_00000010", output + "/step_00000030"});
    CHECK(steps_of(output) == std::vector<int64_t>{20, 40, 50});
    auto expected = before;
    std::erase_if(expected, [](const auto& entry) {
        return entry.first.rfind("step_00000010", 0) == 0 || entry.first.rfind("step_00000030", 0) == 0;
    });
    CHECK(snapshot(output) == expected);
    CHECK(prune_checkpoints(directory / "absent", 1).empty());
}
