// Attention by each unit that computes its products: matrix tiles by their emulation, which every CPU that multiplies
// bfloat16 at all can run.
#include <cmath>

#include "test/kernels/attention_fixture.h"
#include "test/kernels/cpu/units_under_test.h"
#include "test/support/catch.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

// Around strips of 16, tiles of 32 and 64, and blocks of 256 positions; heads that fill tiles and heads that do not.
std::vector<AttentionShape> shapes(Random& random) {
    std::vector<AttentionShape> result = {{1, 1, 1, 1, 8},    {1, 17, 2, 1, 20},  {1, 33, 1, 1, 72},
                                          {2, 64, 1, 1, 64},  {1, 95, 3, 1, 128}, {1, 129, 2, 2, 30},
                                          {1, 300, 1, 1, 40}, {1, 525, 1, 1, 6}};
    for (int i = 0; i < 3; ++i)
        result.push_back({1, random.integer(1, 200), 2, random.integer(1, 2), 2 * random.integer(1, 50)});
    return result;
}

}  // namespace

TEST_CASE(
    "matrix tiles and vector registers give the attention of the double-precision formula, with the same "
    "bits for "
    "any number of threads",
    "[attention_forward][attention_backward][matmul_units]") {
    Random random(61);
    for (const AttentionShape& s : shapes(random)) {
        for (DType type : compute_types()) {
            const Array qkv = random.normals(s.rows() * s.qkv_columns(), type);
            const Array dy = random.normals(s.rows() * s.heads * s.head_dim, type, 1e-2);
            const reference::AttentionForward forward = reference::attention_forward(qkv, plain(s));
            const Array log_sum_exp = reference::rounded(DType::float32, forward.log_sum_exp);
            const Array y = reference::rounded(type, forward.y.value);
            const reference::Result gradient =
                reference::attention_backward(dy, qkv, y, log_sum_exp, plain(s));
            for (const UnitUnderTest& unit : units_under_test()) {
                INFO(text(s, type) << ", " << unit.name);
                Outputs first;
                Array first_gradient;
                for (int threads : {1, 3}) {
                    const std::unique_ptr<Backend> backend = unit.make(threads);
                    if (!backend->supports(type)) continue;
                    std::string damage[2];
                    const Outputs out = run_forward(*backend, qkv, type, s, &damage[0]);
                    const Array d = run_backward(*backend, dy, qkv, y, log_sum_exp, type, s, &damage[1]);
                    CHECK(damage[0] + damage[1] == "");
                    CHECK(difference(out.y, forward.y, type, slack(type, forward)) == "");
                    CHECK(difference(out.log_sum_exp, log_sum_exp_bound(forward), DType::float32, 0x1p-20) ==
                          "");
                    CHECK(difference(d, gradient, type, slack(type, forward)) == "");
                    if (threads == 1) {
                        first = out, first_gradient = d;
                    } else {
                        CHECK(inequality(out.y, first.y) == "");
                        CHECK(inequality(out.log_sum_exp, first.log_sum_exp) == "");
                        CHECK(inequality(d, first_gradient) == "");
                    }
                }
            }
        }
    }
}
