// What the tests of matmuls on the emulated device have in common.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "dev/emulator/emulator.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/matmul/dense_matmul.h"
#include "test/support/catch.h"
#include "test/support/device.h"

namespace train_qat::test {

inline Backend& emulated_device() {
    static const std::unique_ptr<Backend> backend = make_emulated_cuda_backend(CudaOptions{});
    return *backend;
}
inline CU_BACKEND::CuStream emulated_stream() {
    return dynamic_cast<CU_BACKEND::CudaBackend&>(emulated_device()).device().stream();
}

// Calls `body` with races checked and threads in several orders.
inline void in_several_orders(const std::function<void()>& body) {
    for (uint64_t seed : {0, 1, 2}) {
        INFO("schedule " << seed);
        emulator::Settings settings = emulator::settings();
        settings.check_races = true;
        settings.schedule_seed = seed;
        const emulator::SettingsScope scope(settings);
        body();
    }
}

// Of a product.
struct Extents {
    int64_t rows, columns, inner;
};

struct Tile {
    CU_BACKEND::TileSize size;
    int64_t rows, columns;
};
constexpr Tile matmul_tiles[] = {{CU_BACKEND::TileSize::small, 128, 64},
                                 {CU_BACKEND::TileSize::large, 256, 128}};

// What all matmuls on tensor cores have in common: rows and columns of the product, padded to whole tiles,
// cost FLOP; no access meets a bank conflict; whole sectors are stored.
inline emulator::LaunchReport lint_matmul(const Extents& e, const Tile& tile,
                                          const std::function<void()>& call) {
    const auto round_up = [](int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; };
    emulator::Recorder recorder;
    call();
    REQUIRE(recorder.launches().size() == 1);
    const emulator::LaunchReport& launch = recorder.launches()[0];
    INFO(emulator::markdown(recorder.launches()));
    CHECK(launch.tensor_core_flops ==
          2 * round_up(e.rows, tile.rows) * round_up(e.columns, tile.columns) * round_up(e.inner, 32));
    CHECK(launch.bank_conflicts() == 0);
    CHECK(launch.shared_bytes <= 99 << 10);  // what every card since 2020 has
    CHECK(launch.store_sectors == launch.ideal_store_sectors);
    return launch;
}

}  // namespace train_qat::test
