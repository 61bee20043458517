// Checkpoints that many ranks save and load, each its own rows.
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <map>

#include "kernels/cpu/cpu_backend.h"
#include "model/storage/checkpoint.h"
#include "test/support/catch.h"
#include "test/support/divided_set.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"
#include "test/support/thread_communicator.h"

using namespace train_qat;
using namespace train_qat::test;
namespace fs = std::filesystem;

namespace {

// Copies stop working after some: a device that fails.
class FailingBackend : public CpuBackend {
  public:
    explicit FailingBackend(int copies) : CpuBackend(1, MatmulUnit::vectors), copies_(copies) {}
    bool host_addressable() const override { return false; }
    void copy_to_host(void* host, const void* device, int64_t bytes) override {
        count();
        CpuBackend::copy_to_host(host, device, bytes);
    }
    void copy_to_device(void* device, const void* host, int64_t bytes) override {
        count();
        CpuBackend::copy_to_device(device, host, bytes);
    }
    void fail_after(int copies) { copies_ = copies; }

  private:
    void count() {
        if (copies_-- <= 0) throw std::runtime_error("the device is lost");
    }
    int copies_;
};

// Weights, scales and moments with fewer rows than ranks among them.
struct Content {
    std::vector<WholeTensor> model, optimizer;
    explicit Content(uint32_t seed)
        : model(with_random_bytes({{"model.norm.weight", DType::float32, {7}},
                                   {"layer.weight", DType::bfloat16, {9, 3}},
                                   {"layer.weight_scale", DType::float32, {9, 1}},
                                   {"small.weight", DType::float32, {2, 5}}},
                                  seed)),
          optimizer(with_random_bytes({{"layer.weight.first_moment", DType::float32, {9, 3}},
                                       {"model.norm.weight.first_moment", DType::float32, {7}}},
                                      seed + 1)) {}
};

// One rank's share of it.
struct Share {
    DividedSet model, optimizer;
    Share(Backend& backend, const Content& content, const Communicator& communicator, uint32_t division)
        : model(backend, content.model, communicator, division),
          optimizer(backend, content.optimizer, communicator, division) {}
    CheckpointContents contents(int64_t step, int rank = 0) {
        return {step, model.tensors(), optimizer.tensors(), {{"phase", "QAT"}, {"rank", rank}}};
    }
    void load(const CheckpointReader& reader, Backend& backend, Communicator& communicator) {
        reader.load_model(backend, communicator, model.tensors());
        reader.load_optimizer(backend, communicator, optimizer.tensors());
    }
};

// What each rank throws, or "".
using Errors = std::vector<std::string>;
Errors errors_of_ranks(int ranks, const std::function<void(Communicator&)>& body) {
    Errors errors(static_cast<size_t>(ranks));
    run_ranks(ranks, [&](Communicator& communicator) {
        errors[communicator.rank()] = error_of([&] { body(communicator); });
    });
    return errors;
}

Errors save_by(int ranks, const std::string& output, int64_t step, const Content& content, uint32_t division,
               bool replace_existing = false) {
    return errors_of_ranks(ranks, [&](Communicator& communicator) {
        const auto backend = make_cpu_backend(1);
        Share share(*backend, content, communicator, division);
        save_checkpoint(output, *backend, communicator, share.contents(step, communicator.rank()),
                        replace_existing);
    });
}

// Loads on ranks of which some may have tensors that the content does not fit. Memory beyond a rank's rows
// must stay as it was.
Errors load_by(int ranks, const std::string& path, const Content& content, uint32_t division) {
    return errors_of_ranks(ranks, [&](Communicator& communicator) {
        const auto backend = make_cpu_backend(1);
        Share share(*backend, content, communicator, division);
        share.model.poison();
        share.optimizer.poison();
        share.load(CheckpointReader(path, communicator), *backend, communicator);
        if (!share.model.holds(content.model) || !share.optimizer.holds(content.optimizer))
            throw std::runtime_error("other bytes");
    });
}

// The same line on all ranks, of this rank and with these words. What is rank 0's business or what all ranks
// find names no rank.
bool all_say(const Errors& errors, int rank, std::initializer_list<std::string> words) {
    const bool same =
        std::all_of(errors.begin(), errors.end(), [&](const auto& error) { return error == errors[0]; });
    const std::string named = "rank " + std::to_string(rank) + ": ";
    const bool of_rank = errors[0].find(named) == 0 || (rank == 0 && errors[0].find("rank ") != 0);
    return same && of_rank && mentions(errors[0], words);
}

}  // namespace

TEST_CASE("what some ranks save, any number of ranks loads exactly", "[checkpoint]") {
    const TemporaryDirectory directory;
    const Content content(1);
    std::string first;
    for (int saving = 1; saving <= 4; ++saving) {
        const std::string output = directory / ("by_" + std::to_string(saving));
        CHECK(save_by(saving, output, 7, content, saving == 2 ? 9 : 0) == Errors(saving));
        const std::string path = output + "/step_00000007";
        CHECK(std::distance(fs::directory_iterator(output), {}) == 1);
        auto files = snapshot(path);
        CHECK(files.size() == 3);
        CHECK(CheckpointReader(path, *make_single_communicator()).state()["rank"] == 0);
        // But for the time of writing, the same whatever the number of ranks.
        files["manifest.json"].resize(files["manifest.json"].find("\"written\""));
        std::string all;
        for (const auto& [name, bytes] : files) all += name + bytes;
        if (saving == 1) first = all;
        CHECK(all == first);
        for (int loading = 1; loading <= 4; ++loading)
            for (const uint32_t division : {0u, 4u, DividedSet::not_divided}) {
                INFO(saving << " ranks save, " << loading << " load, division " << division);
                CHECK(load_by(loading, loading % 2 == 0 ? path : output, content, division) ==
                      Errors(loading));
            }
    }
    CHECK(load_by(13, directory / "by_1", content, 0) == Errors(13));
    CHECK(save_by(13, directory / "by_13", 7, content, 0) == Errors(13));
    CHECK(load_by(1, directory / "by_13", content, 0) == Errors(1));
}

TEST_CASE("damage anywhere is found by all ranks, also where each reads its rows only", "[checkpoint]") {
    const TemporaryDirectory directory;
    const std::string output = directory / "out";
    const Content content(2);
    REQUIRE(save_by(2, output, 3, content, 0) == Errors(2));
    const std::string path = output + "/step_00000003";
    // Rank by rank, several runs use the same memory: what it holds is not looked at.
    const auto check_all = [&](uint32_t division, int ranks) {
        for (const std::string name : {"model.safetensors", "optimizer.safetensors"}) {
            const std::string file = path + "/" + name;
            const std::string bytes = read_bytes(file);
            std::vector<Errors> errors(bytes.size(), Errors(static_cast<size_t>(ranks)));
            run_ranks(ranks, [&](Communicator& communicator) {
                const auto backend = make_cpu_backend(1);
                Share share(*backend, content, communicator, division);
                const CheckpointReader reader(path, communicator);
                for (size_t i = 0; i < bytes.size(); ++i) {
                    if (communicator.rank() == 0) {
                        std::string damaged = bytes;
                        damaged[i] = static_cast<char>(damaged[i] ^ (i % 3 == 0 ? 0x80 : 0x01));
                        write_bytes(file, damaged);
                    }
                    communicator.barrier();
                    errors[i][communicator.rank()] =
                        error_of([&] { share.load(reader, *backend, communicator); });
                }
            });
            write_bytes(file, bytes);
            for (size_t i = 0; i < bytes.size(); ++i) {
                INFO(name << " byte " << i << " '" << bytes[i] << "'");
                CHECK(all_say(errors[i], 0, {file}));
            }
        }
        CHECK(load_by(ranks, path, content, division) == Errors(ranks));
    };
    check_all(0, 3);
    check_all(6, 2);
    check_all(DividedSet::not_divided, 2);
}

TEST_CASE("rows of equal content that changed places are found", "[checkpoint]") {
    const TemporaryDirectory directory;
    const std::string output = directory / "out";
    const Content content(2);
    REQUIRE(save_by(1, output, 3, content, 0) == Errors(1));
    const std::string file = output + "/step_00000003/model.safetensors";
    std::string bytes = read_bytes(file);
    const size_t row = bytes.find(content.model[1].bytes);
    REQUIRE(row != std::string::npos);
    std::swap_ranges(bytes.begin() + row, bytes.begin() + row + 6, bytes.begin() + row + 6);
    write_bytes(file, bytes);
    CHECK(all_say(load_by(3, output, content, 0), 0, {file, "damaged", "checksum"}));
}

TEST_CASE("a rank that fails makes all ranks fail alike and leaves everything as it was", "[checkpoint]") {
    const TemporaryDirectory directory;
    const std::string output = directory / "out";
    const Content old(1), other(5);
    REQUIRE(save_by(2, output, 10, old, 0) == Errors(2));
    const auto before = snapshot(output);
    const int last_copy[] = {2, 3, 5};  // of each rank: in the second file
    for (const int64_t step : {10, 11}) {
        for (const int failing : {0, 1, 2}) {
            for (const int copies : {0, 1, last_copy[failing]}) {
                const Errors errors = errors_of_ranks(3, [&](Communicator& communicator) {
                    FailingBackend backend(INT32_MAX);
                    Share share(backend, other, communicator, 0);
                    if (communicator.rank() == failing) backend.fail_after(copies);
                    save_checkpoint(output, backend, communicator, share.contents(step), true);
                });
                INFO("step " << step << ", rank " << failing << " fails after " << copies);
                CHECK(all_say(errors, failing, {"the device is lost"}));
                CHECK(snapshot(output) == before);
            }
        }
        for (const int elsewhere : {1, 2}) {  // a rank that does not see the file of the others
            const Errors errors = errors_of_ranks(3, [&](Communicator& communicator) {
                const auto backend = make_cpu_backend(1);
                Share share(*backend, other, communicator, 0);
                const bool lost = communicator.rank() == elsewhere;
                save_checkpoint(lost ? directory / "elsewhere" : output, *backend, communicator,
                                share.contents(step), true);
            });
            CHECK(all_say(errors, elsewhere, {directory / "elsewhere", "one file system"}));
            CHECK(snapshot(output) == before);
        }
        for (const rlim_t limit : {0, 200, 400}) {
            Errors errors;
            {
                const FileSizeLimit full_disk(limit);
                errors = save_by(3, output, step, other, 0, true);
            }
            CHECK(all_say(errors, 0, {"partial", "ulimit"}));
            CHECK(snapshot(output) == before);
        }
    }
    CHECK(all_say(save_by(3, output, 10, other, 0), 0, {"step_00000010", "exists already"}));
    CHECK(load_by(4, output, old, 0) == Errors(4));
    CHECK(save_by(3, output, 10, other, 0, true) == Errors(3));
    CHECK(load_by(4, output, other, 0) == Errors(4));
    CHECK(std::distance(fs::directory_iterator(output), {}) == 1);
}

TEST_CASE("a rank that cannot read makes all ranks fail alike", "[checkpoint]") {
    const TemporaryDirectory directory;
    const std::string output = directory / "out";
    const Content content(1);
    REQUIRE(save_by(2, output, 10, content, 0) == Errors(2));
    for (const uint32_t division : {0u, DividedSet::not_divided})
        for (const int failing : {0, 1, 2}) {
            const Errors errors = errors_of_ranks(3, [&](Communicator& communicator) {
                FailingBackend backend(INT32_MAX);
                Share share(backend, content, communicator, division);
                const CheckpointReader reader(output, communicator);
                if (communicator.rank() == failing) backend.fail_after(1);
                share.load(reader, backend, communicator);
            });
            CHECK(all_say(errors, failing, {"the device is lost"}));
        }
    for (const int elsewhere : {0, 1, 2})
        CHECK(all_say(errors_of_ranks(3,
                                      [&](Communicator& communicator) {
                                          const bool lost = communicator.rank() == elsewhere;
                                          const CheckpointReader reader(
                                              lost ? directory / "elsewhere" : output, communicator);
                                      }),
                      elsewhere, {directory / "elsewhere", "no such directory"}));
    // One that sees another checkpoint of the same name.
    REQUIRE(save_by(2, directory / "other", 10, Content(3), 0) == Errors(2));
    CHECK(all_say(errors_of_ranks(3,
                                  [&](Communicator& communicator) {
                                      const bool lost = communicator.rank() == 2;
                                      const CheckpointReader reader(lost ? directory / "other" : output,
                                                                    communicator);
                                  }),
                  2, {directory / "other/step_00000010/manifest.json", "rank 0", "one file system"}));
}

TEST_CASE("all ranks resume from what rank 0 finds", "[checkpoint]") {
    const TemporaryDirectory directory;
    const std::string output = directory / "out";
    const Content content(1);
    for (const int64_t step : {10, 20, 30}) REQUIRE(save_by(2, output, step, content, 0) == Errors(2));
    fs::remove(output + "/step_00000030/manifest.json");
    std::vector<std::optional<std::string>> found(3), none(3, "something");
    std::vector<std::vector<std::string>> passed_over(3), read_passed_over(3);
    std::vector<std::string> read(3);
    run_ranks(3, [&](Communicator& communicator) {
        const int rank = communicator.rank();
        found[rank] = find_latest_checkpoint(output, communicator, &passed_over[rank]);
        none[rank] = find_latest_checkpoint(directory / "absent", communicator);
        // Between the two looks of a rank, the directory changes.
        if (rank == 0) fs::rename(output + "/step_00000020/manifest.json", output + "/hidden");
        communicator.barrier();
        const CheckpointReader reader(output, communicator);
        read[rank] = reader.path();
        read_passed_over[rank] = reader.passed_over();
    });
    CHECK(found == std::vector<std::optional<std::string>>(3, output + "/step_00000020"));
    CHECK(none == std::vector<std::optional<std::string>>(3));
    CHECK(passed_over[0].size() == 1);
    CHECK(passed_over[1].empty());
    CHECK(read == std::vector<std::string>(3, output + "/step_00000010"));
    CHECK(read_passed_over[0].size() == 2);
    CHECK(read_passed_over[2].empty());
    // A rank that sees other checkpoints follows rank 0.
    fs::copy(output, directory / "other", fs::copy_options::recursive);
    fs::rename(directory / "other/hidden", directory / "other/step_00000020/manifest.json");
    run_ranks(2, [&](Communicator& communicator) {
        const std::string& mine = communicator.rank() == 0 ? output : directory / "other";
        found[communicator.rank()] = find_latest_checkpoint(mine, communicator);
    });
    CHECK(found[0] == output + "/step_00000010");
    CHECK(found[1] == (directory / "other/step_00000010"));
    // A directory that cannot be listed.
    const std::string file = directory.write("file", "");
    const Errors errors =
        errors_of_ranks(2, [&](Communicator& communicator) { find_latest_checkpoint(file, communicator); });
    CHECK(all_say(errors, 0, {file}));
}

TEST_CASE("a checkpoint that cannot fit is refused by all ranks, by the sum of their rows", "[checkpoint]") {
    const TemporaryDirectory directory;
    const std::string output = directory / "out";
    const Content content(1);
    const Errors errors = errors_of_ranks(2, [&](Communicator& communicator) {
        const auto backend = make_cpu_backend(1);
        Share share(*backend, content, communicator, 0);
        CheckpointContents contents = share.contents(2);
        // Claims 2 PB on each of two ranks; refused before its memory would be read.
        contents.model[3].rows = int64_t{1} << 50;
        contents.model[3].tensor.shape[0] = int64_t{1} << 49;
        contents.model[3].tensor.shape[1] = 1;
        contents.model[3].first_row = communicator.rank() * (int64_t{1} << 49);
        save_checkpoint(output, *backend, communicator, contents);
    });
    CHECK(all_say(errors, 0, {output, "not enough space", "step 2", "4503.6 TB"}));
    CHECK(fs::is_empty(output));
}
