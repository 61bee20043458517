#include "model/storage/safetensors.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <random>
#include <thread>

#include "kernels/cpu/cpu_backend.h"
#include "model/storage/checksum.h"
#include "model/storage/row_writer.h"
#include "test/support/catch.h"
#include "test/support/device.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"
#include "test/support/tensor_set.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

Backend& backend() {
    return *backends_under_test().front().backend;
}

// A file from a hand-written header and data. The header is not padded: readers must not need it.
std::string file_bytes(const std::string& header, const std::string& data) {
    const uint64_t length = header.size();
    return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

std::string open_error(const std::string& bytes) {
    const TemporaryDirectory directory;
    const std::string path = directory.write("model.safetensors", bytes);
    const std::string error = error_of([&] { SafetensorsFile file(path); });
    if (!error.empty()) CHECK(error.find(path) == 0);  // the file is named first
    return error;
}

std::string tensor_entry(const std::string& name, const std::string& shape, int begin, int end) {
    return "\"" + name + R"(":{"dtype":"F32","shape":)" + shape + R"(,"data_offsets":[)" +
           std::to_string(begin) + "," + std::to_string(end) + "]}";
}

// A device whose memory the host sees by copies alone, as a GPU's.
class DistantBackend : public CpuBackend {
  public:
    DistantBackend() : CpuBackend(1, MatmulUnit::vectors) {}
    bool host_addressable() const override { return false; }
    void copy_to_host(void* host, const void* device, int64_t bytes) override {
        ++copies;
        if (std::this_thread::get_id() != owner_) ++copies_elsewhere;
        CpuBackend::copy_to_host(host, device, bytes);
    }
    int copies = 0;
    int copies_elsewhere = 0;  // by other threads than the one that made it

  private:
    const std::thread::id owner_ = std::this_thread::get_id();
};

void write_file(const std::string& path, TensorSet& set) {
    write_safetensors(path, backend(), alone(), set.tensors());
}

}  // namespace

TEST_CASE("a written safetensors file has exactly the bytes of the format", "[safetensors]") {
    const TemporaryDirectory directory;
    TensorSet set(backend());
    set.add("w", DType::float32, {1, 2}).add("a", DType::bfloat16, {3}).add("i", DType::int32, {1});
    set.set(set.tensors()[0].tensor, std::string("\x00\x00\x80\x3f\x00\x00\x00\xc0", 8));  // 1, -2
    set.set(set.tensors()[1].tensor, std::string("\x80\x3f\x00\x40\x00\x00", 6));          // 1, 2, 0
    set.set(set.tensors()[2].tensor, std::string("\x07\x00\x00\x00", 4));                  // 7

    const std::string header =
        R"({"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},)"
        R"("a":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]},"i":{"dtype":"I32","shape":[1],"data_offsets":[14,18]}})";
    const std::string padding((8 - header.size() % 8) % 8, ' ');
    const std::string expected = file_bytes(
        header + padding,
        std::string("\x00\x00\x80\x3f\x00\x00\x00\xc0\x80\x3f\x00\x40\x00\x00\x07\x00\x00\x00", 18));

    const std::string path = directory / "tiny.safetensors";
    const FileSummary summary =
        write_safetensors(path, backend(), alone(), set.tensors(), {{"format", "pt"}});
    CHECK(read_bytes(path) == expected);
    CHECK(summary.bytes == static_cast<int64_t>(expected.size()));
    CHECK(summary.checksum == checksum_by_rows(expected));
    CHECK(checksum_text(summary.checksum) ==
          "36ddaf9bbcb14def");  // by the Python of model/storage/manifest.h
    CHECK(safetensors_bytes(set.tensors(), {{"format", "pt"}}) == summary.bytes);

    const SafetensorsFile file(path);
    CHECK(file.names() == std::vector<std::string>{"w", "a", "i"});
    CHECK(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}});
    CHECK(file.info("a").dtype == "BF16");
    CHECK(file.info("w").shape == std::vector<int64_t>{1, 2});
}

TEST_CASE("tensors of odd shapes come back bit by bit on every backend", "[safetensors]") {
    for (const auto& [name, device, under_test] : backends_under_test()) {
        INFO(name);
        const TemporaryDirectory directory;
        TensorSet set(*under_test);
        set.add("scalar", DType::float32, {1}).add("odd", DType::bfloat16, {3, 1, 5, 7});
        set.add("a \"b\"\n\xc3\xa9", DType::int32, {13, 17}).add("row", DType::float32, {1, 1021});
        set.randomize(1);
        const std::string path = directory / "x.safetensors";
        const FileSummary summary = write_safetensors(path, *under_test, alone(), set.tensors());

        TensorSet loaded = set.blank_copy();
        std::reverse(loaded.tensors().begin(), loaded.tensors().end());
        const SafetensorsFile file(path);
        CHECK(file.read_all(*under_test, alone(), loaded.tensors()) == summary.checksum);
        std::reverse(loaded.tensors().begin(), loaded.tensors().end());
        CHECK(loaded.contents() == set.contents());
    }
}

TEST_CASE("tensors larger than the staging buffer come back bit by bit", "[safetensors]") {
    DistantBackend distant;
    for (Backend* saving : {&backend(), static_cast<Backend*>(&distant)}) {
        const TemporaryDirectory directory;
        TensorSet set(*saving);
        // 16 MiB and a bit, and exactly 16 MiB.
        set.add("small", DType::bfloat16, {3}).add("large", DType::float32, {(4 << 20) + 3});
        set.add("exact", DType::float32, {1024, 4096});
        // Rows that 16 MiB would cut in two, and more pieces than threads that write.
        set.add("rows", DType::bfloat16, {7, (3 << 20) + 1}).add("last", DType::float32, {2, 2}).randomize(2);
        const std::string path = directory / "large.safetensors";
        const FileSummary summary = write_safetensors(path, *saving, alone(), set.tensors());
        CHECK(checksum_by_rows(read_bytes(path)) == summary.checksum);
        TensorSet loaded = set.blank_copy();
        CHECK(SafetensorsFile(path).read_all(*saving, alone(), loaded.tensors()) == summary.checksum);
        CHECK((loaded.contents() == set.contents()));  // not printed when different
    }
    CHECK(distant.copies > 9);
    CHECK(distant.copies_elsewhere == 0);
}

TEST_CASE("a piece that cannot be written makes the save fail, whichever it is", "[safetensors]") {
    DistantBackend distant;
    for (Backend* saving : {&backend(), static_cast<Backend*>(&distant)}) {
        const TemporaryDirectory directory;
        TensorSet set(*saving);
        for (int i = 0; i < 9; ++i) set.add("w" + std::to_string(i), DType::float32, {4, 1000});
        const std::string path = directory / "x.safetensors";
        for (rlim_t pieces : {0, 1, 5, 8}) {
            INFO("no room after " << pieces << " pieces");
            OutputFile file(path, 9 * 16000);
            const FileSizeLimit full_disk(pieces * 16000 + 1000);
            RowWriter writer(file, *saving);
            const std::string error = error_of([&] {
                for (int64_t i = 0; i < 9; ++i)
                    writer.write(i * 16000, set.tensors()[i].tensor.data, rows_held(set.tensors()[i]));
                writer.finish();
            });
            CHECK(mentions(error, {path, "ulimit -f"}));
        }
        CHECK_FALSE(std::filesystem::exists(path));
    }
}

TEST_CASE("files of other writers are read: unpadded, unordered, scalars, empty tensors, other dtypes",
          "[safetensors]") {
    const TemporaryDirectory directory;
    const std::string header =
        R"({"b":{"dtype":"F32","shape":[],"data_offsets":[2,6]},"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},)"
        R"("empty":{"dtype":"I64","shape":[0,4],"data_offsets":[6,6]},"z":{"dtype":"U8","shape":[3],"data_offsets":[6,9]}})";
    const std::string path = directory.write("x.safetensors", file_bytes(header, "123456789"));
    const SafetensorsFile file(path);
    CHECK(file.names() == std::vector<std::string>{"a", "b", "empty", "z"});
    CHECK(file.info("b").shape.empty());
    CHECK(file.info("empty").bytes == 0);
    CHECK_FALSE(file.contains("c"));
    CHECK(mentions(error_of([&] { file.info("c"); }), {path, "no tensor \"c\""}));
    TensorSet set(backend());
    set.add("a", DType::bfloat16, {1});
    CHECK(mentions(error_of([&] { file.read_all(backend(), alone(), set.tensors()); }),
                   {path, "\"a\"", "expected BF16 [1]", "found F16 [1]"}));
}

TEST_CASE("a file without tensors is a file", "[safetensors]") {
    const TemporaryDirectory directory;
    const std::string path = directory / "none.safetensors";
    const FileSummary summary = write_safetensors(path, backend(), alone(), {});
    CHECK(read_bytes(path) == file_bytes("{}      ", ""));
    CHECK(SafetensorsFile(path).read_all(backend(), alone(), {}) == summary.checksum);
}

TEST_CASE("reading refuses tensors that do not match", "[safetensors]") {
    const TemporaryDirectory directory;
    TensorSet set(backend());
    set.add("model.norm.weight", DType::float32, {4}).add("w", DType::float32, {2, 3}).randomize(3);
    const std::string path = directory / "x.safetensors";
    write_file(path, set);
    const SafetensorsFile file(path);
    const auto error_with = [&](TensorSet& wanted) {
        return error_of([&] { file.read_all(backend(), alone(), wanted.tensors()); });
    };
    TensorSet shape(backend());
    shape.add("model.norm.weight", DType::float32, {4}).add("w", DType::float32, {3, 2});
    CHECK(mentions(error_with(shape), {path, "\"w\"", "expected F32 [3,2]", "found F32 [2,3]"}));
    CHECK(shape.content(0) == std::string(16, '\0'));  // checked before anything is read
    TensorSet rank(backend());
    rank.add("model.norm.weight", DType::float32, {4}).add("w", DType::float32, {6});
    CHECK(mentions(error_with(rank), {"\"w\"", "expected F32 [6]", "found F32 [2,3]"}));
    TensorSet dtype(backend());
    dtype.add("model.norm.weight", DType::bfloat16, {4}).add("w", DType::float32, {2, 3});
    CHECK(mentions(error_with(dtype), {"model.norm.weight", "expected BF16 [4]", "found F32 [4]"}));
    TensorSet missing(backend());
    missing.add("model.norm.weight", DType::float32, {4})
        .add("w", DType::float32, {2, 3})
        .add("w_scale", DType::float32, {2});
    CHECK(mentions(error_with(missing), {path, "has no tensor \"w_scale\"", "options"}));
    TensorSet extra(backend());
    extra.add("w", DType::float32, {2, 3});
    CHECK(mentions(error_with(extra),
                   {path, "holds a tensor \"model.norm.weight\"", "does not have", "options"}));
    TensorSet twice(backend());
    twice.add("w", DType::float32, {2, 3}).add("w", DType::float32, {2, 3});
    CHECK_THROWS_AS(file.read_all(backend(), alone(), twice.tensors()), std::logic_error);
}

TEST_CASE("every truncation of a safetensors file is refused", "[safetensors]") {
    const TemporaryDirectory directory;
    TensorSet set(backend());
    set.add("first", DType::float32, {3}).add("second", DType::bfloat16, {5}).randomize(4);
    const std::string path = directory / "x.safetensors";
    write_file(path, set);
    const std::string bytes = read_bytes(path);
    for (size_t length = 0; length < bytes.size(); ++length) {
        write_bytes(path, bytes.substr(0, length));
        INFO("length " << length);
        CHECK(mentions(error_of([&] { SafetensorsFile file(path); }),
                       {path, length < 10 ? "too short" : "truncated"}));
    }
    write_bytes(path, bytes + "x");
    CHECK(mentions(error_of([&] { SafetensorsFile file(path); }), {path, "1 bytes follow the last tensor"}));
}

TEST_CASE("every changed byte of a safetensors file is noticed", "[safetensors]") {
    const TemporaryDirectory directory;
    TensorSet set(backend());
    set.add("first", DType::float32, {3}).add("second", DType::bfloat16, {5}).randomize(5);
    const std::string path = directory / "x.safetensors";
    const FileSummary summary =
        write_safetensors(path, backend(), alone(), set.tensors(), {{"format", "pt"}});
    const std::string bytes = read_bytes(path);
    REQUIRE(static_cast<int64_t>(bytes.size()) == summary.bytes);
    for (size_t i = 0; i < bytes.size(); ++i) {
        for (const int flip : {0x01, 0x80}) {
            std::string damaged = bytes;
            damaged[i] = static_cast<char>(damaged[i] ^ flip);
            write_bytes(path, damaged);
            TensorSet loaded = set.blank_copy();
            bool noticed = false;
            const std::string error = error_of([&] {
                noticed =
                    SafetensorsFile(path).read_all(backend(), alone(), loaded.tensors()) != summary.checksum;
            });
            INFO("byte " << i << ", flip " << flip << ": " << error);
            CHECK((noticed || (error.find(path) == 0 && error.find('\n') == std::string::npos)));
        }
    }
}

TEST_CASE("hostile headers are refused with one line", "[safetensors]") {
    const std::string data(16, 'x');
    const auto error_for = [&](const std::string& header) { return open_error(file_bytes(header, data)); };
    const auto with = [](const std::string& value) { return R"({"w":)" + value + "}"; };

    CHECK(
        mentions(open_error("\xff\xff\xff\xff\xff\xff\xff\xff{}"), {"header declares 18446744073709551615"}));
    CHECK(mentions(open_error(std::string("\xf8\xff\xff\xff\xff\xff\xff\x7f{}", 10)), {"header declares"}));
    CHECK(mentions(error_for(""), {"JSON"}));
    CHECK(mentions(error_for("[1]"), {"not a JSON object"}));
    CHECK(mentions(error_for("{\"w\":\n\n"), {"JSON"}));
    CHECK(mentions(error_for(std::string("{\0}", 3)), {"JSON"}));
    CHECK(mentions(error_for(std::string(100000, '[')), {"JSON"}));
    CHECK(mentions(
        error_for("{" + tensor_entry("w", "[4]", 0, 16) + "," + tensor_entry("w", "[4]", 0, 16) + "}"),
        {"\"w\"", "occurs twice"}));
    CHECK(mentions(
        error_for("{" + tensor_entry("w", "[3]", 0, 12) + "," + tensor_entry("v", "[2]", 8, 16) + "}"),
        {"\"v\"", "begins at byte 8", "overlap"}));
    CHECK(mentions(
        error_for("{" + tensor_entry("w", "[1]", 0, 4) + "," + tensor_entry("v", "[2]", 8, 16) + "}"),
        {"\"v\"", "gap"}));
    CHECK(mentions(error_for("{" + tensor_entry("w", "[3]", 4, 16) + "}"), {"\"w\"", "gap"}));
    CHECK(
        mentions(error_for("{" + tensor_entry("w", "[3]", 0, 12) + "}"), {"4 bytes follow the last tensor"}));
    CHECK(
        mentions(error_for("{" + tensor_entry("w", "[5]", 0, 20) + "}"), {"truncated", "\"w\"", "20", "16"}));
    CHECK(mentions(error_for("{" + tensor_entry("w", "[4]", 0, 12) + "}"), {"\"w\"", "16 bytes", "[0,12]"}));
    CHECK(mentions(error_for("{" + tensor_entry("w", "[4]", 16, 0) + "}"), {"\"w\"", "[16,0]"}));
    CHECK(mentions(error_for("{" + tensor_entry("w", "[-4]", 0, 16) + "}"), {"\"w\"", "shape"}));
    CHECK(mentions(error_for("{" + tensor_entry("w", "[4.0]", 0, 16) + "}"), {"\"w\"", "shape"}));
    CHECK(mentions(error_for("{" + tensor_entry("w", "4", 0, 16) + "}"), {"\"w\"", "shape"}));
    CHECK(mentions(error_for("{" + tensor_entry("w", "[4294967296,4294967296]", 0, 16) + "}"),
                   {"\"w\"", "too large"}));
    CHECK(mentions(error_for("{" + tensor_entry("w", "[18446744073709551615]", 0, 16) + "}"),
                   {"\"w\"", "too large"}));
    CHECK(mentions(
        error_for(
            with(R"({"dtype":"U8","shape":[4],"data_offsets":[9223372036854775803,9223372036854775807]})")),
        {"\"w\"", "truncated"}));
    CHECK(mentions(error_for(with("7")), {"\"w\"", "dtype"}));
    CHECK(mentions(error_for(with("{}")), {"\"w\"", "dtype"}));
    CHECK(mentions(error_for(with(R"({"dtype":7,"shape":[4],"data_offsets":[0,16]})")), {"\"w\"", "dtype"}));
    CHECK(mentions(error_for(with(R"({"dtype":"Q4\n","shape":[4],"data_offsets":[0,16]})")),
                   {"\"w\"", "unknown dtype", "Q4\\n"}));
    CHECK(mentions(error_for(with(R"({"dtype":"F32","shape":[4]})")), {"\"w\"", "data_offsets"}));
    CHECK(mentions(error_for(with(R"({"dtype":"F32","shape":[4],"data_offsets":[0,8,16]})")),
                   {"\"w\"", "data_offsets"}));
    CHECK(mentions(error_for(R"({"a\nb":7})"), {"\"a\\nb\""}));
    CHECK(mentions(error_for(R"({"__metadata__":7})"), {"__metadata__"}));
    CHECK(mentions(error_for(R"({"__metadata__":{"k":7}})"), {"__metadata__", "\"k\""}));
    CHECK(mentions(open_error(""), {"too short"}));

    const TemporaryDirectory directory;
    CHECK(mentions(error_of([&] { SafetensorsFile file(directory / "absent"); }), {"absent", "cannot open"}));
    std::filesystem::create_directory(directory / "folder");
    CHECK(mentions(error_of([&] { SafetensorsFile file(directory / "folder"); }), {"not a regular file"}));
}

TEST_CASE("writing never leaves half a file and never overwrites one", "[safetensors]") {
    const TemporaryDirectory directory;
    TensorSet set(backend());
    set.add("w", DType::float32, {1000}).randomize(6);
    const std::string path = directory / "x.safetensors";
    std::string error;
    for (const rlim_t limit : {0, 3, 100, 4000}) {
        {
            const FileSizeLimit full_disk(limit);
            error = error_of([&] { write_file(path, set); });
        }
        INFO("limit " << limit);
        CHECK(mentions(error, {path, "missing", "ulimit"}));
        CHECK_FALSE(std::filesystem::exists(path));
    }
    directory.write("x.safetensors", "precious");
    CHECK(mentions(error_of([&] { write_file(path, set); }), {path, "exists already"}));
    CHECK(read_bytes(path) == "precious");
    CHECK(
        mentions(error_of([&] { write_file(directory / "absent/x", set); }), {"absent/x", "cannot create"}));

    TensorSet twice(backend());
    twice.add("w", DType::float32, {1}).add("w", DType::float32, {1});
    CHECK_THROWS_AS(write_file(directory / "y", twice), std::logic_error);
    TensorSet reserved(backend());
    reserved.add("__metadata__", DType::float32, {1});
    CHECK_THROWS_AS(write_file(directory / "y", reserved), std::logic_error);
    const NamedTensor empty{"w", Tensor()};
    CHECK_THROWS_AS(write_safetensors(directory / "y", backend(), alone(), {&empty, 1}), std::logic_error);
    CHECK_FALSE(std::filesystem::exists(directory / "y"));
}

TEST_CASE("a full disk is reported with what is missing", "[safetensors]") {
    const FileDescriptor full(::open("/dev/full", O_WRONLY));
    REQUIRE(full.get() >= 0);
    const std::string bytes(1500, 'x');
    CHECK(mentions(error_of([&] { write_all(full.get(), "/dev/full", bytes.data(), 1500, 2'000'000); }),
                   {"/dev/full", "no space left", "needs 2.0 MB more", "available"}));
}
