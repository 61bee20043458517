// A whole Hopper matmul on the emulated device: right in every order of threads and landings, and each planted mistake is
// found, with the place.
#include "test/emulator/hopper_gemm.h"

using namespace train_qat;
using namespace train_qat::CU_BACKEND;
using train_qat::test::Fresh;
using train_qat::test::hopper_settings;

TEST_CASE("A Hopper matmul is right in all orders of threads and landings", "[emulator][hopper]") {
    Fresh fresh;
    INFO("numbers from " << fresh.seed);
    struct Shape {
        int64_t M, N, K;
    };
    std::vector<Shape> shapes = {{1, 8, 8}, {129, 72, 264}};
    for (int i = 0; i < 2; ++i)
        shapes.push_back({fresh.between(1, 300), 8 * fresh.between(1, 25), 8 * fresh.between(1, 50)});
    for (const Shape& shape : shapes)
        for (uint64_t seed : {0, 1, 2, 3, 4}) {
            const emulator::SettingsScope scope(hopper_settings(seed));
            Runtime runtime(0);
            INFO("M " << shape.M << ", N " << shape.N << ", K " << shape.K << ", schedule " << seed);
            const Gemm gemm(runtime, fresh, shape.M, shape.N, shape.K);
            gemm.run(runtime, static_cast<unsigned>(fresh.between(1, 3)));
            CHECK(gemm.error() <= 1);
        }
}

TEST_CASE("A Hopper matmul is right unchecked, recorded and while races are looked for",
          "[emulator][hopper]") {
    Fresh fresh;
    INFO("numbers from " << fresh.seed);
    emulator::Settings unchecked = hopper_settings(), racing = hopper_settings(7);
    unchecked.checked = false;
    racing.check_races = true;
    for (const emulator::Settings& settings : {unchecked, racing}) {
        const emulator::SettingsScope scope(settings);
        Runtime runtime(0);
        emulator::Recorder recorder;
        const Gemm gemm(runtime, fresh, 150, 136, 200);
        gemm.run(runtime, 2);
        CHECK(gemm.error() <= 1);
        REQUIRE(recorder.launches().size() == 1);
        const emulator::LaunchReport& report = recorder.launches()[0];
        // 2 x 3 tiles of 4 slices, and what lies inside of z.
        CHECK(report.tensor_core_flops == int64_t{2} * 6 * 128 * 64 * 4 * 64);
        CHECK(report.bytes_loaded == 2 * (3 * 150 * 200 + 2 * 136 * 200));
        CHECK(report.bytes_stored == 2 * 150 * 136);
    }
}

TEST_CASE("Hopper's instructions need compute capability 9.0", "[emulator][hopper]") {
    Fresh fresh;
    Runtime runtime(0);
    const Gemm gemm(runtime, fresh, 8, 8, 8);
    CHECK(test::lacking(
              test::failure_of([&] { gemm.run(runtime, 1); }),
              {"kernel hopper_gemm<fault>, block (0,0,0), thread (0,0,0): uses an instruction of compute "
               "capability 9.0; the emulated device has 8.0",
               "hopper_gemm.h:"}) == "");
}

namespace {

// "" when the mistake is found in every order with one of the messages, and the device works after it.
template <Fault fault>
std::string shortcoming(const std::vector<std::vector<std::string>>& messages, bool x_swizzled = true) {
    Fresh fresh;
    for (uint64_t seed : {0, 1, 2, 3, 4, 5}) {
        const emulator::SettingsScope scope(hopper_settings(seed));
        Runtime runtime(0);
        // Enough slices for the ring to wrap, enough tiles for the buffers to be used again.
        Gemm gemm(runtime, fresh, 200, 136, 8 * fresh.between(49, 56));
        gemm.x_swizzled = x_swizzled;
        const std::string message = test::failure_of([&] { gemm.run<fault>(runtime, 1); });
        std::string lacks;
        bool found = false;
        for (std::vector<std::string> parts : messages) {
            parts.insert(parts.end(),
                         {"kernel hopper_gemm<fault>, block (0,0,0), thread (", "hopper_gemm.h:"});
            const std::string here = test::lacking(message, parts);
            found = found || here.empty();
            lacks += here;
        }
        if (!found) return "schedule " + std::to_string(seed) + ": " + lacks;
        gemm.x_swizzled = true;
        gemm.run(runtime, 2);
        if (!(gemm.error() <= 1)) return "the device does not work any more";
    }
    return "";
}

}  // namespace

TEST_CASE("The emulator finds mistakes of a Hopper matmul: its ring", "[emulator][hopper]") {
    CHECK(shortcoming<Fault::release_before_wait>(
              {{"thread (0,0,0): writes shared memory in use: the wgmma at ",
                " has not been waited for: byte "}}) == "");
    CHECK(shortcoming<Fault::no_full_wait>(
              {{"reads shared memory in use: the bulk copy at ", " has not landed"},
               {"reads unwritten shared memory"}}) == "");
    CHECK(shortcoming<Fault::no_empty_wait>(
              {{"thread (0,0,0): too many arrivals: arrives at the barrier at byte 0 of full, which has 24"},
               {"thread (0,0,0): writes shared memory in use"}}) == "");
    CHECK(shortcoming<Fault::producer_parity>(
              {{"deadlock: nothing can go on", "phase parity 0 of the barrier at byte 0 of empty",
                "lacks 8 of 8 arrivals",
                "byte 0 of full, which has 24, whose phase 0 lacks 1 of 1 arrival"}}) == "");
    CHECK(shortcoming<Fault::too_many_bytes>({{"deadlock: nothing can go on", "full",
                                               "lacks 0 of 1 arrival and 16 bytes, which no copy brings"}}) ==
          "");
    CHECK(shortcoming<Fault::too_few_bytes>(
              {{"thread (0,0,0): too few bytes were announced at the barrier at byte ",
                "16 bytes more land in phase 0"}}) == "");
    CHECK(shortcoming<Fault::one_copy_too_few>(
              {{"thread (0,0,0): too few bytes were announced", "16384 bytes more land in phase 0"},
               {"thread (0,0,0): too few bytes were announced",
                "phase 0 ended before this copy of 16384 bytes"},
               {"thread (0,0,0): too few bytes were announced", "8192 bytes more land in phase 0"}}) == "");
    CHECK(shortcoming<Fault::empty_count_large>(
              {{"deadlock: nothing can go on", "empty", "lacks 1 of 9 arrivals"}}) == "");
    CHECK(shortcoming<Fault::empty_count_small>({{"writes shared memory in use"},
                                                 {"reads shared memory in use"},
                                                 {"deadlock: nothing can go on"},
                                                 {"too many arrivals"}}) == "");
    CHECK(shortcoming<Fault::no_barrier_fence>(
              {{"thread (0,0,0): starts a bulk copy that lands at the barrier at byte 0 of full, which has "
                "24, which "
                "thread (0,0,0) has made with no fence_barrier_init since"}}) == "");
    CHECK(shortcoming<Fault::none>(
              {{"wgmma reads with 128-byte swizzle what a tensor map without it has loaded: byte "}},
              false) == "");
}

TEST_CASE("The emulator finds mistakes of a Hopper matmul: its products", "[emulator][hopper]") {
    CHECK(shortcoming<Fault::no_wgmma_fence>(
              {{"calls wgmma without wgmma_fence since its registers were last free to change"}}) == "");
    CHECK(shortcoming<Fault::no_wait_before_epilogue>({{"uses sums of a wgmma that has not been waited for"},
                                                       {"writes shared memory in use: the wgmma at "}}) ==
          "");
    CHECK(shortcoming<Fault::waits_for_too_few>({{"uses sums of a wgmma that has not been waited for"},
                                                 {"writes shared memory in use: the wgmma at "}}) == "");
    CHECK(shortcoming<Fault::sum_changed_in_flight>(
              {{"calls wgmma with sums that were changed while the wgmma at "}}) == "");
    CHECK(shortcoming<Fault::one_warp_multiplies_less>(
              {{"calls wgmma with other operands than another warp of its warpgroup"},
               {"deadlock: nothing can go on"}}) == "");
}

TEST_CASE("The emulator finds mistakes of a Hopper matmul: its outputs", "[emulator][hopper]") {
    CHECK(shortcoming<Fault::no_proxy_fence>({{"a tensor store reads what thread (",
                                               "has written with no fence_async_proxy since: byte "}}) == "");
    CHECK(shortcoming<Fault::no_wait_read>({{"writes shared memory in use: the tensor store at ",
                                             " has not been waited for: byte "}}) == "");
    CHECK(shortcoming<Fault::no_final_wait_read>({{"returns while the tensor store at "}}) == "");
    CHECK(shortcoming<Fault::group_of_too_many>(
              {{"wrong count: arrives at barrier ",
                "as one of 128 threads, but 128 have come as some of 256 at "},
               {"deadlock: nothing can go on", "named barrier ", "where 128 of 256 threads have arrived"}}) ==
          "");
    CHECK(shortcoming<Fault::groups_disagree>({{"wrong count: arrives at barrier "}}) == "");
    CHECK(shortcoming<Fault::group_divergence>({{"while lanes ", "of its warp wait in group_sync"},
                                                {"while lane ", "of its warp waits in"},
                                                {"deadlock: nothing can go on", "in group_sync"}}) == "");
}
