// The guard that stops a run whose numbers go wrong.
#include "model/run/guard.h"

#include <cmath>
#include <limits>

#include "test/support/catch.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

std::string guard_error(RunGuard& guard, int64_t step, double loss, double norm,
                        const std::string& offender = "") {
    return error_of([&] { guard.check(step, {&loss, 1}, norm, offender); });
}

}  // namespace

TEST_CASE("the guard lets healthy numbers pass", "[guard]") {
    RunGuard guard(61);
    for (int64_t step = 1; step <= 500; ++step) CHECK(guard_error(guard, step, 4.1, 1e30).empty());
    CHECK(guard_error(guard, 501, 0, 0).empty());
}

TEST_CASE("the guard stops at numbers that are not finite", "[guard]") {
    RunGuard guard(61);
    CHECK(mentions(guard_error(guard, 7, not_a_number, 1.0),
                   {"step 7: ", "the loss is ", "nan", "no checkpoint yet", "-lr"}));
    CHECK(mentions(guard_error(guard, 8, infinity, 1.0, "model.norm.weight"),
                   {"step 8: ", "the loss is inf", "first bad gradient: model.norm.weight"}));
    CHECK(guard_error(guard, 9, infinity, 1.0).find("gradient") == std::string::npos);
    CHECK(mentions(guard_error(guard, 10, 4.0, not_a_number, "model.layers.0.mlp.up_proj.weight"),
                   {"step 10: ", "gradient norm", "first bad gradient: model.layers.0.mlp.up_proj.weight"}));
    CHECK(mentions(guard_error(guard, 11, 4.0, infinity),
                   {"step 11: ", "gradient norm", "their sum overflows"}));
    guard.set_last_checkpoint("out/step_00000003");
    guard.set_last_checkpoint("out/step_00000006");
    const std::string error = guard_error(guard, 12, 4.0, not_a_number, "x");
    CHECK(
        mentions(error, {"the last good checkpoint is out/step_00000006", "nothing of this step was kept"}));
    CHECK(error.find("no checkpoint yet") == std::string::npos);
}

TEST_CASE("the guard stops a loss that stays far above that of guessing", "[guard]") {
    constexpr int64_t patience = 50;
    const double threshold = 2.0 * std::log(61.0) + 1.0;  // 9.22
    {
        RunGuard guard(61);
        for (int64_t step = 1; step < patience; ++step)
            CHECK(guard_error(guard, step, threshold + 0.01, 1).empty());
        CHECK(mentions(guard_error(guard, patience, threshold + 0.01, 1),
                       {"step 50: ", "diverges", "50 steps"}));
    }
    {
        RunGuard guard(61);  // one step that is below starts the count again
        for (int64_t step = 1; step <= 1000; ++step)
            CHECK(guard_error(guard, step, step % patience == 0 ? threshold - 0.01 : 1e6, 1).empty());
    }
    RunGuard guard(61);
    for (int64_t step = 1; step <= 200; ++step) CHECK(guard_error(guard, step, threshold - 0.01, 1).empty());
}
