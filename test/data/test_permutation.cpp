#include "data/permutation.h"

#include <cmath>
#include <cstdint>
#include <map>
#include <set>
#include <vector>

#include "test/support/catch.h"

using namespace train_qat;

TEST_CASE("permutation: a bijection for every size", "[data]") {
    for (const uint64_t size : {1u, 2u, 3u, 4u, 5u, 7u, 16u, 17u, 1000u, 65536u, 65537u}) {
        for (const uint64_t epoch : {0u, 1u, 9u}) {
            const Permutation permutation(size, 42, epoch);
            std::vector<bool> seen(size, false);
            for (uint64_t i = 0; i < size; ++i) {
                const uint64_t image = permutation(i);
                REQUIRE(image < size);
                if (seen[image]) FAIL("size " << size << ": " << image << " occurs twice");
                seen[image] = true;
            }
        }
    }
    // Sizes beyond 32 bits: distinct and in range where they can't all be visited.
    const uint64_t huge = (uint64_t{1} << 41) + 12345;
    const Permutation permutation(huge, 3, 0);
    std::set<uint64_t> images;
    for (uint64_t i = 0; i < 2000; ++i) images.insert(permutation(huge - 1 - i));
    REQUIRE(images.size() == 2000);
    REQUIRE(*images.rbegin() < huge);
    REQUIRE(*images.rbegin() > huge / 2);
}

TEST_CASE("permutation: looks random in the statistics that matter for a shuffle", "[data]") {
    constexpr uint64_t size = 9973;
    const Permutation permutation(size, 5, 2);
    // Fixed points and neighbours that stay neighbours: about 1 and 2 are expected of a random permutation.
    int fixed = 0, neighbours = 0;
    double displacement = 0;
    for (uint64_t i = 0; i < size; ++i) {
        const double moved = static_cast<double>(permutation(i)) - static_cast<double>(i);
        fixed += moved == 0;
        displacement += std::abs(moved) / size;
        if (i > 0) neighbours += std::abs(static_cast<int64_t>(permutation(i) - permutation(i - 1))) == 1;
    }
    REQUIRE(fixed <= 8);
    REQUIRE(neighbours <= 10);
    REQUIRE(displacement / size ==
            Approx(1.0 / 3).margin(0.01));  // E|U - V| of uniform U, V; 4 sigma = 0.0095

    // Over seeds, each of the 6 orders of 3 elements comes up about equally often (chi-squared, 5 degrees of
    // freedom).
    std::map<std::vector<uint64_t>, int> orders;
    for (uint64_t seed = 0; seed < 6000; ++seed) {
        const Permutation small(3, seed, 0);
        ++orders[{small(0), small(1), small(2)}];
    }
    REQUIRE(orders.size() == 6);
    double chi_squared = 0;
    for (const auto& [order, count] : orders) chi_squared += (count - 1000.0) * (count - 1000.0) / 1000.0;
    REQUIRE(chi_squared < 20.5);  // p = 0.001
}
