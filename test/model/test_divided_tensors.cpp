// safetensors files that many ranks write and read, each its own rows.
#include <filesystem>
#include <functional>
#include <map>
#include <memory>

#include "model/storage/safetensors.h"
#include "test/support/catch.h"
#include "test/support/divided_set.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"
#include "test/support/thread_communicator.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

const std::map<std::string, std::string> metadata = {{"format", "pt"}};

std::vector<WholeTensor> odd_tensors(uint32_t seed) {
    return with_random_bytes({{"embedding", DType::float32, {13, 3}},
                              {"norm", DType::float32, {7}},
                              {"one", DType::bfloat16, {1}},
                              {"narrow", DType::bfloat16, {4, 5}},
                              {"narrow_scale", DType::float32, {4, 1}},
                              {"group_scale", DType::float32, {5, 3}},
                              {"row", DType::float32, {1, 17}},
                              {"deep", DType::int32, {3, 1, 2, 5}},
                              {"two", DType::bfloat16, {2, 1}}},
                             seed);
}

struct Written {
    FileSummary summary;
    std::string bytes;
};

// Written by `ranks` ranks; all must return the same.
Written write_by(int ranks, const std::vector<WholeTensor>& tensors, uint32_t division) {
    const TemporaryDirectory directory;
    const std::string path = directory / "x.safetensors";
    std::vector<FileSummary> summaries(static_cast<size_t>(ranks));
    run_ranks(ranks, [&](Communicator& communicator) {
        const auto backend = make_cpu_backend(1);
        DividedSet set(*backend, tensors, communicator, division);
        summaries[communicator.rank()] =
            write_safetensors(path, *backend, communicator, set.tensors(), metadata);
    });
    for (const FileSummary& summary : summaries) {
        CHECK(summary.bytes == summaries[0].bytes);
        CHECK(summary.checksum == summaries[0].checksum);
    }
    return {summaries[0], read_bytes(path)};
}

// What each of `ranks` throws when it writes what `change` makes of its tensors.
std::vector<std::string> write_errors(int ranks, const std::function<void(NamedTensor&, int)>& change) {
    const TemporaryDirectory directory;
    const std::string path = directory / "x.safetensors";
    std::vector<std::string> errors(static_cast<size_t>(ranks));
    const auto tensors = with_random_bytes({{"w", DType::float32, {6, 2}}}, 1);
    run_ranks(ranks, [&](Communicator& communicator) {
        const auto backend = make_cpu_backend(1);
        DividedSet set(*backend, tensors, communicator, 0);
        change(set.tensors()[0], communicator.rank());
        try {
            write_safetensors(path, *backend, communicator, set.tensors());
        } catch (const std::logic_error& error) {
            errors[communicator.rank()] = error.what();
        }
    });
    CHECK_FALSE(std::filesystem::exists(path));
    return errors;
}

}  // namespace

TEST_CASE("any number of ranks writes the same bytes and checksums as one", "[safetensors]") {
    const auto tensors = odd_tensors(1);
    const Written one = write_by(1, tensors, DividedSet::not_divided);
    CHECK(one.summary.bytes == static_cast<int64_t>(one.bytes.size()));
    CHECK(one.summary.checksum == checksum_by_rows(one.bytes));
    std::string data;
    for (const WholeTensor& tensor : tensors) data += tensor.bytes;
    CHECK(one.bytes.substr(one.bytes.size() - data.size()) == data);
    for (const int ranks : {1, 2, 3, 5, 14}) {
        for (const uint32_t division : {0u, 1u, 100u, DividedSet::not_divided}) {
            INFO(ranks << " ranks, division " << division);
            const Written many = write_by(ranks, tensors, division);
            CHECK(many.bytes == one.bytes);
            CHECK(many.summary.bytes == one.summary.bytes);
            CHECK(many.summary.checksum == one.summary.checksum);
        }
    }
}

TEST_CASE("a set may be divided in part", "[safetensors]") {
    const TemporaryDirectory directory;
    const std::string path = directory / "x.safetensors";
    const auto tensors = odd_tensors(2);
    const Written one = write_by(1, tensors, DividedSet::not_divided);
    std::vector<uint64_t> written(3), read(3);
    std::vector<int> exact(3);
    run_ranks(3, [&](Communicator& communicator) {
        const auto backend = make_cpu_backend(1);
        DividedSet divided(*backend, tensors, communicator, 5);
        DividedSet whole(*backend, tensors, communicator, DividedSet::not_divided);
        std::vector<NamedTensor> mixed;
        for (size_t i = 0; i < tensors.size(); ++i)
            mixed.push_back(i % 2 == 0 ? divided.tensors()[i] : whole.tensors()[i]);
        const int rank = communicator.rank();
        written[rank] = write_safetensors(path, *backend, communicator, mixed, metadata).checksum;
        std::vector<std::string> before;
        for (const NamedTensor& named : mixed) {
            before.emplace_back(static_cast<const char*>(named.tensor.data),
                                static_cast<size_t>(rows_held(named).bytes()));
            if (named.tensor.data != nullptr) backend->fill_zero(named.tensor.data, rows_held(named).bytes());
        }
        read[rank] = SafetensorsFile(path).read_all(*backend, communicator, mixed);
        exact[rank] = 1;
        for (size_t i = 0; i < tensors.size(); ++i)
            exact[rank] &=
                before[i] == std::string(static_cast<const char*>(mixed[i].tensor.data), before[i].size());
    });
    CHECK(read_bytes(path) == one.bytes);
    CHECK(written == std::vector<uint64_t>(3, one.summary.checksum));
    CHECK(read == written);
    CHECK(exact == std::vector<int>(3, 1));
}

TEST_CASE("rows larger than the staging buffer are written and read by ranks", "[safetensors]") {
    const TemporaryDirectory directory;
    const std::string path = directory / "x.safetensors";
    // Rows of 8 MiB and a bit, cut by the end of the buffer, and one of more than 16 MiB.
    const auto tensors = with_random_bytes(
        {{"rows", DType::bfloat16, {3, (4 << 20) + 1}}, {"vector", DType::float32, {(4 << 20) + 3}}}, 3);
    std::vector<uint64_t> written(2), read(2);
    std::vector<int> exact(2);
    run_ranks(2, [&](Communicator& communicator) {
        const auto backend = make_cpu_backend(1);
        DividedSet set(*backend, tensors, communicator, 0);
        const int rank = communicator.rank();
        written[rank] = write_safetensors(path, *backend, communicator, set.tensors()).checksum;
        set.poison();
        read[rank] = SafetensorsFile(path).read_all(*backend, communicator, set.tensors());
        exact[rank] = set.holds(tensors);
    });
    CHECK(written == std::vector<uint64_t>(2, checksum_by_rows(read_bytes(path))));
    CHECK(read == written);
    CHECK(exact == std::vector<int>(2, 1));
}

TEST_CASE("ranks that read other tensors than those of the file are refused together", "[safetensors]") {
    const TemporaryDirectory directory;
    const auto tensors = odd_tensors(4);
    const std::string path = directory.write("x.safetensors", write_by(2, tensors, 0).bytes);
    for (const auto& [change, message] :
         std::vector<std::pair<std::function<void(NamedTensor&)>, std::string>>{
             {[](NamedTensor& named) { named.rows += 1; },
              "\"narrow\": expected BF16 [5,5], found BF16 [4,5]"},
             {[](NamedTensor& named) { named.tensor.shape[1] = 4; },
              "\"narrow\": expected BF16 [4,4], found BF16 [4,5]"},
             {[](NamedTensor& named) { named.name = "other"; }, "has no tensor \"other\""}}) {
        for (const int odd_one : {0, 2}) {
            std::vector<std::string> errors(3);
            std::vector<int> untouched(3);
            run_ranks(3, [&, &change = change](Communicator& communicator) {
                const auto backend = make_cpu_backend(1);
                DividedSet set(*backend, tensors, communicator, 0);
                const int rank = communicator.rank();
                if (rank == odd_one) change(set.tensors()[3]);
                const SafetensorsFile file(path);
                errors[rank] = error_of([&] { file.read_all(*backend, communicator, set.tensors()); });
            });
            CHECK(mentions(errors[0], {"rank " + std::to_string(odd_one) + ": " + path, message}));
            CHECK(errors == std::vector<std::string>(3, errors[0]));
        }
    }
}

TEST_CASE("parts that do not fit together are bugs, found before a file exists", "[safetensors]") {
    const auto same_on_all = [](const std::vector<std::string>& errors, const std::string& text) {
        UNSCOPED_INFO(errors[0] << " | " << errors[1]);
        return errors[0].find(text) != std::string::npos && errors[1] == errors[0];
    };
    CHECK(same_on_all(write_errors(2,
                                   [](NamedTensor& w, int rank) {
                                       if (rank == 1) w.first_row = 2;  // a row twice
                                   }),
                      "every row once of w"));
    CHECK(same_on_all(write_errors(2,
                                   [](NamedTensor& w, int rank) {
                                       if (rank == 1) w.tensor.shape[0] = 2;  // the last is nobody's
                                   }),
                      "every row once of w"));
    CHECK(same_on_all(write_errors(2,
                                   [](NamedTensor& w, int) {
                                       w.tensor.shape[0] = 0;
                                       w.first_row = 0;
                                   }),
                      "every row once of w"));
    for (const bool held : {false, true})
        CHECK(same_on_all(write_errors(2,
                                       [&](NamedTensor& w, int) {  // a vector that both have, or neither
                                           w.tensor.rank = w.rows = 1;
                                           w.first_row = 0;
                                           if (!held) w.tensor.data = nullptr;
                                       }),
                          "every row once of w"));
    CHECK(same_on_all(write_errors(2, [](NamedTensor& w, int rank) { w.name += std::to_string(rank); }),
                      "differ in name"));
    CHECK(same_on_all(write_errors(2, [](NamedTensor& w, int rank) { w.tensor.shape[1] = 1 + rank; }),
                      "differ in name"));
    // What a rank can see by itself.
    for (const auto& [change, text] :
         std::vector<std::pair<std::function<void(NamedTensor&, int)>, std::string>>{
             {[](NamedTensor&w, int) { w.first_row = 4; }, "no part"},
             {[](NamedTensor&w, int) { w.first_row = -1; }, "no part"},
             {[](NamedTensor&w, int) { w.tensor.shape[0] = 7; }, "no part"},
             {[](NamedTensor&w, int) { w.tensor.data = nullptr; }, "no part"},
             {[](NamedTensor&w, int) { w.tensor.rank = 1; }, "no part"},
             {[](NamedTensor&w, int) { w.rows = 0, w.first_row = 1; }, "no part"},
             {[](NamedTensor&w, int) { w.tensor.shape[1] = 0; }, "empty"},
             {[](NamedTensor&w, int) { w.tensor.rank = 0; }, "empty"}})
        CHECK(same_on_all(write_errors(2, change),
                          text + (text == "empty" ? " tensor: w" : " of its rows: w")));
}
