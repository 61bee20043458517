// What a run records of its results.
#include "model/run/results.h"

#include "model/run/metrics.h"
#include "test/support/catch.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"
#include "test/support/run_fixture.h"

using namespace train_qat;
using namespace train_qat::test;

TEST_CASE("run.json holds settings, results and where they are from", "[results]") {
    RunResults results = some_state().results;
    results.qat_tokens_per_second = 1234.5;
    results.sample = "Once \xff";
    const nlohmann::ordered_json record =
        run_record(some_settings(), some_plan(), results, "a processor", {9.89e14, "data sheet"});
    CHECK(record["configuration"] == recorded(some_settings()));
    // Other programs read them: keys and their order stay.
    CHECK(record["layout"].dump() == R"({"ranks":1,"zero":1,"batch":3,"grad_accum":5,"logit_rows":48})");
    CHECK(record["plan"]["bits"] == some_plan().bits);
    CHECK(record["plan"]["fp_steps"] == some_plan().fp_steps);
    CHECK(record["plan"]["qat_fraction"] == some_plan().qat_fraction);
    CHECK(record["device"] == "a processor");
    CHECK(record["peak"]["flops_per_second"] == 9.89e14);
    CHECK(record["peak"]["source"] == "data sheet");
    CHECK(record["compiler"] == __VERSION__);
    CHECK(record["results"]["full_precision_at_switch"] == 10.0 / 3.0);
    CHECK(record["results"]["rounded_at_switch"] == 1e-17);
    CHECK(record["results"]["quantized"].is_null());
    CHECK(record["results"]["tokens_per_second_fp"] == 0);
    CHECK(record["results"]["tokens_per_second_qat"] == 1234.5);
    CHECK(record["results"]["sample"] == "Once \xff");
}

TEST_CASE("a run says what its MFU is a share of", "[results]") {
    CHECK(peak_line({9.89e14, "data sheet"}) == "MFU is stated against 989.0 TFLOP/s (data sheet)");
    CHECK(peak_line({2 * 4.6e11, "measured"}) == "MFU is stated against 920.0 GFLOP/s (measured)");
}

TEST_CASE("the closing table shows what is known", "[results]") {
    RunResults results;
    results.full_precision = 3.25;
    results.rounded = 4.125;
    results.quantized = 3.3125;
    results.fp_tokens_per_second = 6400.4;
    results.qat_tokens_per_second = 6300;
    results.sample = "Once upon";
    const std::string all = results_table(results, some_plan(1, 0.4));
    for (const char* part : {"validation loss", "full precision, at the switch", "3.2500",
                             "rounded to 1 bit (no QAT)", "4.1250", "quantization-aware trained, 1 bit ",
                             "3.3125", "6400 tokens/s", "6300 tokens/s", "\nsample\nOnce upon\n"})
        CHECK_THAT(all, contains_text(part));
    CHECK_THAT(results_table(results, some_plan(1.58)), contains_text("1.58 bits"));

    RunResults few;
    few.qat_tokens_per_second = 100;
    const std::string little = results_table(few, some_plan());
    for (const char* part : {"validation loss", "full", "sample"})
        CHECK(little.find(part) == std::string::npos);
    few.full_precision = 2;
    const std::string without_switch = results_table(few, some_plan(4, 0));
    CHECK_THAT(without_switch, contains_text("full precision  "));
    CHECK(without_switch.find("switch") == std::string::npos);
}

TEST_CASE("the throughput of a phase leaves its first step out when there are more", "[results]") {
    PhaseTime time;
    CHECK(time.tokens_per_second() == 0);
    time.add(100, 50);
    CHECK(time.tokens_per_second() == 2);
    time.add(100, 1);
    CHECK(time.tokens_per_second() == 100);
    time.add(100, 3);
    CHECK(time.tokens_per_second() == 50);
}
