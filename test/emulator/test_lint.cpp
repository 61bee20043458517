// What the CUDA emulator counts: sectors of global memory and wavefronts of shared memory, by launch and by
// line.
#include "test/emulator/emulator_fixture.h"

using namespace train_qat;
using train_qat::test::DeviceArray;

namespace train_qat::CU_BACKEND {
namespace {

__global__ void copy(float* out, const float* in, int stride, int offset) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    store(out + i, load(in + i * stride + offset));
}

__global__ void copy_vectors(float* out, const float* in) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    store_vector(out + 4 * i, load_vector<4>(in + 4 * i));
}

// Lanes of a warp go on together, however often each of them comes by.
__global__ void copy_in_a_loop(float* out, const float* in, int count) {
    for (int i = static_cast<int>(threadIdx.x); i < count; i += 32) store(out + i, load(in + i));
}

__global__ void broadcast(float* out, const float* in) {
    store(out + threadIdx.x, load(in));
}

template <int pitch>
__global__ void columns(float* out) {
    CU_SHARED(tile, float[32][pitch]);
    for (int row = 0; row < 32; ++row) store_shared(&tile[row][threadIdx.x], 1.0f);
    warp_sync();
    float sum = 0;
    for (int column = 0; column < 32; ++column) sum += load_shared(&tile[threadIdx.x][column]);
    store(out + threadIdx.x, sum);
}

// Rows of 64 bytes; a lane's row starts at its 16-byte chunk, in another place in each row if swizzled.
__global__ void read_matrices(uint32_t* out, bool swizzled) {
    CU_DYN_SHARED(bfloat16, tile);
    const int lane = lane_index();
    for (int chunk = 0; chunk < 4; ++chunk)
        store_shared_vector(tile + lane * 32 + chunk * 8, Vector<bfloat16, 8>{});
    warp_sync();
    const int row = lane % 16, chunk = lane / 16;
    uint32_t four[4];
    ldmatrix_x4(four, tile + row * 32 + (swizzled ? chunk ^ (row / 2 % 4) : chunk) * 8);
    store(out + lane, four[0]);
}

__global__ void wide_shared(float* out) {
    CU_DYN_SHARED(float, row);
    store_shared_vector(row + 4 * threadIdx.x, Vector<float, 4>{{1, 2, 3, 4}});
    warp_sync();
    const Vector<float, 2> two = load_shared_vector<2>(row + 2 * threadIdx.x);
    const float same = load_shared(row + 5);
    const float even = load_shared(row + 2 * threadIdx.x);
    store(out + threadIdx.x, two[0] + same + even);
}

__global__ void copies_and_products(float* out, const float* in) {
    CU_DYN_SHARED(float, row);
    cp_async_16(row + 4 * threadIdx.x, in + 4 * threadIdx.x, threadIdx.x < 16 ? 16 : 4);
    cp_async_commit();
    cp_async_wait<0>();
    float sum[2][1][4] = {};
    const uint32_t a[2][4] = {}, b[1][2] = {};
    mma_tile<32, 8>(sum, a, b);
    store(out + blockIdx.x * 32 + threadIdx.x, sum[0][0][0]);
}

}  // namespace
}  // namespace train_qat::CU_BACKEND

using namespace train_qat::CU_BACKEND;
using emulator::LaunchReport;
using emulator::Recorder;

namespace {

struct Device {
    emulator::SettingsScope defaults{emulator::Settings()};
    Runtime runtime{0};
    DeviceArray<float> in{runtime, 32 * 1024}, out{runtime, 1024};
    DeviceArray<uint32_t> words{runtime, 1024};
    CuStream stream() { return runtime.stream(); }
};

// The only launch that `work` makes.
template <typename Work>
LaunchReport report_of(const Work& work) {
    const Recorder recorder;
    work();
    REQUIRE(recorder.launches().size() == 1);
    return recorder.launches()[0];
}

}  // namespace

TEST_CASE("Sectors of global loads and stores", "[emulator]") {
    Device device;
    const auto copying = [&](int stride, int offset) {
        return report_of([&] {
            CU_LAUNCH(copy, 2, 64, 0, device.stream(), device.out.data(), device.in.data(), stride, offset);
        });
    };
    const LaunchReport dense = copying(1, 0);
    CHECK(dense.kernel == "copy");
    CHECK(dense.file.find("test_lint.cpp") != std::string::npos);
    CHECK((dense.grid.x == 2 && dense.block.x == 64));
    CHECK(dense.bytes_loaded == 512);
    CHECK(dense.bytes_stored == 512);
    CHECK(dense.load_requests == 4);
    CHECK(dense.load_sectors == 4 * 4);
    CHECK(dense.ideal_load_sectors == 4 * 4);
    CHECK(dense.store_requests == 4);
    CHECK(dense.store_sectors == 4 * 4);

    const LaunchReport strided = copying(8, 0);
    CHECK(strided.load_sectors == 4 * 32);
    CHECK(strided.ideal_load_sectors == 4 * 4);
    CHECK(strided.store_sectors == 4 * 4);
    CHECK(copying(2, 0).load_sectors == 4 * 8);
    CHECK(copying(1, 1).load_sectors == 4 * 5);  // one more at the edge

    const LaunchReport vectors = report_of(
        [&] { CU_LAUNCH(copy_vectors, 1, 64, 0, device.stream(), device.out.data(), device.in.data()); });
    CHECK(vectors.load_requests == 2);
    CHECK(vectors.load_sectors == 2 * 16);
    CHECK(vectors.store_sectors == 2 * 16);

    const LaunchReport loop = report_of([&] {
        CU_LAUNCH(copy_in_a_loop, 1, 32, 0, device.stream(), device.out.data(), device.in.data(), 72);
    });
    CHECK(loop.load_requests == 3);  // the last with 8 lanes
    CHECK(loop.load_sectors == 4 + 4 + 1);
    CHECK(loop.ideal_load_sectors == 4 + 4 + 1);

    const LaunchReport one = report_of(
        [&] { CU_LAUNCH(broadcast, 1, 32, 0, device.stream(), device.out.data(), device.in.data()); });
    CHECK(one.bytes_loaded == 128);
    CHECK(one.load_sectors == 1);
    CHECK(one.ideal_load_sectors == 1);
}

TEST_CASE("Bank conflicts of shared memory", "[emulator]") {
    Device device;
    const LaunchReport straight =
        report_of([&] { CU_LAUNCH((columns<32>), 1, 32, 0, device.stream(), device.out.data()); });
    CHECK(straight.shared_bytes == 32 * 32 * 4);
    CHECK(straight.shared_requests == 64);
    CHECK(straight.shared_wavefronts == 32 * 1 + 32 * 32);
    CHECK(straight.ideal_shared_wavefronts == 64);
    CHECK(straight.bank_conflicts() == 32 * 31);
    const LaunchReport padded =
        report_of([&] { CU_LAUNCH((columns<33>), 1, 32, 0, device.stream(), device.out.data()); });
    CHECK(padded.shared_wavefronts == 64);
    CHECK(padded.bank_conflicts() == 0);

    // 16-byte stores: a quarter warp at a time; 8-byte loads: a half; 4 bytes: all, two apart conflict in
    // pairs.
    const LaunchReport wide =
        report_of([&] { CU_LAUNCH(wide_shared, 1, 32, 512, device.stream(), device.out.data()); });
    CHECK(wide.shared_bytes == 512);
    CHECK(wide.shared_requests == 4);
    CHECK(wide.shared_wavefronts == 4 + 2 + 1 + 2);
    CHECK(wide.ideal_shared_wavefronts == 4 + 2 + 1 + 1);
}

TEST_CASE("Bank conflicts of ldmatrix", "[emulator]") {
    Device device;
    const auto reading = [&](bool swizzled) {
        return report_of(
            [&] { CU_LAUNCH(read_matrices, 1, 32, 2048, device.stream(), device.words.data(), swizzled); });
    };
    const LaunchReport straight = reading(false), swizzled = reading(true);
    CHECK(straight.ldmatrix_requests == 1);
    CHECK(straight.ldmatrix_wavefronts == 4 * 4);  // rows two apart share their banks
    CHECK(straight.ideal_ldmatrix_wavefronts == 4);
    CHECK(swizzled.ldmatrix_wavefronts == 4);
}

TEST_CASE("Asynchronous copies and tensor cores are counted", "[emulator]") {
    Device device;
    const LaunchReport report = report_of([&] {
        CU_LAUNCH(copies_and_products, 3, 32, 512, device.stream(), device.out.data(), device.in.data());
    });
    CHECK(report.bytes_loaded == 3 * (16 * 16 + 16 * 4));  // valid bytes
    CHECK(report.load_requests == 3);
    CHECK(report.load_sectors == 3 * (8 + 8));
    CHECK(report.shared_requests == 3);
    CHECK(report.shared_wavefronts == 3 * 4);
    CHECK(report.tensor_core_flops == 3 * 2 * 32 * 8 * 16);
}

TEST_CASE("Counts by line, recorders and tables", "[emulator]") {
    Device device;
    const auto launch = [&] { CU_LAUNCH((columns<32>), 1, 32, 0, device.stream(), device.out.data()); };
    const LaunchReport report = report_of(launch);
    REQUIRE(report.lines.size() == 3);
    emulator::Counters sum, reading;
    for (const auto& [line, counters] : report.lines) {
        CHECK(line.find("test_lint.cpp:") != std::string::npos);
        sum += counters;
        if (counters.shared_wavefronts == 32 * 32) reading = counters;
    }
    CHECK(reading.shared_requests == 32);
    CHECK(sum.shared_wavefronts == report.shared_wavefronts);
    CHECK(sum.store_sectors == report.store_sectors);

    Recorder outer;
    launch();
    {
        const Recorder inner;
        launch();
        CHECK(inner.launches().size() == 1);
    }
    const auto graph = device.runtime.record(launch);
    CHECK(outer.launches().size() == 1);
    device.runtime.launch(*graph);
    CHECK(outer.launches().size() == 2);

    const std::string table = emulator::markdown(outer.launches());
    CHECK(table.find("| columns<32> | 2 |") != std::string::npos);
    CHECK(table.find("Lines that waste") != std::string::npos);
    outer.clear();
    CHECK(outer.launches().empty());
}

// Figures do not depend on the number of CPU threads or on the schedule.
TEST_CASE("Counts are deterministic", "[emulator]") {
    Device device;
    std::string first;
    for (int threads : {1, 2}) {
        for (uint64_t seed : {0, 1}) {
            emulator::Settings settings;
            settings.threads = threads;
            settings.schedule_seed = seed;
            const emulator::SettingsScope scope(settings);
            const Recorder recorder;
            CU_LAUNCH(copy, 16, 64, 0, device.stream(), device.out.data(), device.in.data(), 5, 0);
            CU_LAUNCH((columns<32>), 1, 32, 0, device.stream(), device.out.data());
            const std::string table = emulator::markdown(recorder.launches());
            if (first.empty()) first = table;
            CHECK(table == first);
        }
    }
}
