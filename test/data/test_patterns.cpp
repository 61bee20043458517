#include "data/patterns.h"

#include <string>
#include <vector>

#include "test/support/catch.h"
#include "test/support/files.h"

using namespace train_qat;
using namespace train_qat::test;

TEST_CASE("patterns: paths, globs and lists of them", "[data]") {
    const TemporaryDirectory directory;
    const std::string all[] = {directory.write("x_0.bin", ""), directory.write("x_1.bin", ""),
                               directory.write("x_2.bin", "")};
    const std::vector<std::string> three(all, all + 3);
    REQUIRE(expand_patterns(directory / "x_*.bin") == three);
    REQUIRE(expand_patterns(all[2] + "," + all[0] + "," + all[1]) == three);
    REQUIRE(expand_patterns(all[1] + "," + (directory / "x_[02].bin") + ",") == three);
    REQUIRE(expand_patterns(all[1] + "," + (directory / "*.bin")) == three);  // matched twice, read once
    REQUIRE(expand_patterns(all[1]) == std::vector<std::string>{all[1]});

    directory.write("a,b[1].bin", "");  // a plain path with special characters
    REQUIRE(expand_patterns(directory / "a,b[1].bin") == std::vector<std::string>{directory / "a,b[1].bin"});

    REQUIRE_THAT(
        error_of([&] { expand_patterns(directory / "y_*.bin"); }),
        contains_text("y_*.bin") && contains_text("no token shard matches") && contains_text("prepare.py"));
    REQUIRE_THAT(error_of([&] { expand_patterns(all[0] + "," + (directory / "nope.bin")); }),
                 contains_text("nope.bin"));
    REQUIRE_THAT(error_of([&] { expand_patterns(""); }), contains_text("empty"));
    REQUIRE_THAT(error_of([&] { expand_patterns(directory / ""); }),
                 contains_text("directory") && contains_text("*.bin"));
}
