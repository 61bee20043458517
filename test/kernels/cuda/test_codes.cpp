// Packed codes as the CUDA backend writes them: bit by bit what kernels/codes.h says, and the same numbers as
// the plain form.
#include <cmath>
#include <cstdint>
#include <iterator>
#include <memory>
#include <vector>

#include "kernels/codes.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/weights/codes.cuh"
#include "test/kernels/cuda/parameters_fixture.h"
#include "test/support/catch.h"
#include "test/support/device.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

std::unique_ptr<Backend> make_backend(QatGemm form) {
    CudaOptions options;
    options.qat_gemm = form;
    return make_emulated_cuda_backend(options);
}
Backend& codes_backend() {
    static const std::unique_ptr<Backend> backend = make_backend(QatGemm::fused);
    return *backend;
}
Backend& levels_backend() {
    static const std::unique_ptr<Backend> backend = make_backend(QatGemm::cublaslt);
    return *backend;
}

float effective(const HostParameter& host, int64_t row, int64_t column) {
    const int64_t groups = host.columns / host.group;
    return effective_scale(static_cast<float>(host.scale[row * groups + column / host.group]));
}

// Codes and scales of a whole weight, bit by bit as kernels/codes.h has them.
Bytes packed(const HostParameter& host) {
    const int bits = code_bits(host.grid);
    const int64_t row_bytes = code_row_bytes(host.columns, bits), groups = host.columns / host.group;
    Bytes result(code_scales_offset(host.rows, host.columns, host.grid), 0);
    with_grid(host.grid, [&]<Grid grid>() {
        if constexpr (grid != Grid::none)
            for (int64_t row = 0; row < host.rows; ++row)
                for (int64_t k = 0; k < host.columns; ++k) {
                    const float w = static_cast<float>(host.master[row * host.columns + k]);
                    const uint32_t code =
                        code_of_level<grid>(GridTraits<grid>::level(w / effective(host, row, k)));
                    result[row * row_bytes + k * bits / 8] |=
                        static_cast<unsigned char>(code << (k * bits % 8));
                }
    });
    if (groups == 1) return result;
    for (int64_t row = 0; row < host.rows; ++row)
        for (int64_t i = 0; i < groups; ++i) {
            const float scale = effective(host, row, i * host.group);
            const auto* bytes = reinterpret_cast<const unsigned char*>(&scale);
            result.insert(result.end(), bytes, bytes + sizeof scale);
        }
    return result;
}

Array plain_levels(Bench& bench, const ComputeWeight& weight) {
    return bench.read(Tensor(weight.storage, weight.dtype, {weight.rows, weight.columns}));
}

// The plain form of a weight that holds codes.
Array unpacked(Bench& bench, const ComputeWeight& weight) {
    const Tensor out = bench.output("unpacked", DType::bfloat16, {weight.rows, weight.columns});
    CU_BACKEND::unpack_codes(dynamic_cast<CU_BACKEND::CudaBackend&>(bench.backend()).device().stream(), out,
                             weight);
    return bench.read(out);
}

}  // namespace

TEST_CASE("packed codes are the plain form, bit by bit", "[codes][cuda]") {
    for (Grid grid : reference::quantized_grids())
        for (const MatrixCase& c : matrix_cases) {
            INFO(text(grid, c));
            Random random(7);
            const HostParameter host = random_parameter(random, c.rows, c.columns, grid, c.group);
            Bench with_codes(codes_backend()), with_levels(levels_backend());
            const ComputeWeight& codes = place_weight(with_codes, host, DType::bfloat16);
            const ComputeWeight& levels = place_weight(with_levels, host, DType::bfloat16);
            REQUIRE(codes.codes == grid);
            REQUIRE(codes.code_group == c.group);
            REQUIRE(levels.codes == Grid::none);
            CHECK(codes.scaled == host.one_scale_per_row());
            CHECK(levels.scaled == codes.scaled);
            const Bytes expected = packed(host);
            CHECK((bytes_of(codes_backend(), codes.storage, std::ssize(expected)) == expected));
            CHECK(inequality(unpacked(with_codes, codes), plain_levels(with_levels, levels)) == "");
            CHECK((bytes_of(codes_backend(), codes.scale_storage, c.rows * 4) ==
                   bytes_of(levels_backend(), levels.scale_storage, c.rows * 4)));
            CHECK(with_codes.damage() == "");
            CHECK(with_levels.damage() == "");
        }
}

TEST_CASE("embeddings, float32 and full precision are never packed", "[codes][cuda]") {
    Random random(8);
    Bench bench(codes_backend());
    const HostParameter host = random_parameter(random, 9, 64, Grid::integer4, 64);
    CHECK(place_weight(bench, host, DType::float32).codes == Grid::none);
    CHECK(place_weight(bench, host, DType::bfloat16, true).codes == Grid::none);
    const HostParameter plain = random_parameter(random, 9, 64, Grid::none, 0);
    CHECK(place_weight(bench, plain, DType::bfloat16).codes == Grid::none);
}

TEST_CASE("matrices that share a weight are packed when they agree", "[codes][cuda]") {
    for (int64_t group : {96, 32})
        for (Grid third : {Grid::integer4, Grid::quaternary, Grid::none}) {
            INFO("group " << group << ", third matrix " << reference::name_of(third));
            Random random(9);
            const std::vector<HostParameter> hosts = {random_parameter(random, 11, 96, Grid::integer4, group),
                                                      random_parameter(random, 5, 96, Grid::integer4, group),
                                                      random_parameter(random, 6, 96, third, group)};
            Bench with_codes(codes_backend()), with_levels(levels_backend());
            ComputeWeight* weights[2];
            for (Bench* bench : {&with_codes, &with_levels}) {
                ComputeWeight& weight = bench->compute_weight(22, 96, DType::bfloat16, false, false);
                std::vector<ParameterRows> parameters;
                int64_t first_row = 0;
                for (const HostParameter& host : hosts) {
                    parameters.push_back(place(*bench, host, &weight, first_row));
                    first_row += host.rows;
                }
                bench->backend().quantize({.parameters = parameters});
                CHECK(bench->damage() == "");
                CHECK(weight.scaled == (group == 96));
                weights[bench == &with_levels] = &weight;
            }
            const bool agree = third == Grid::integer4;
            CHECK(weights[0]->codes == (agree ? Grid::integer4 : Grid::none));
            CHECK(weights[1]->codes == Grid::none);
            const Array actual =
                agree ? unpacked(with_codes, *weights[0]) : plain_levels(with_codes, *weights[0]);
            CHECK(inequality(actual, plain_levels(with_levels, *weights[1])) == "");
            CHECK((bytes_of(codes_backend(), weights[0]->scale_storage, 22 * 4) ==
                   bytes_of(levels_backend(), weights[1]->scale_storage, 22 * 4)));
        }
}

TEST_CASE("matrices that share a weight but not the group are not packed", "[codes][cuda]") {
    Random random(10);
    Bench bench(codes_backend());
    ComputeWeight& weight = bench.compute_weight(5, 64, DType::bfloat16, false, false);
    const HostParameter rows = random_parameter(random, 2, 64, Grid::integer4, 64),
                        groups = random_parameter(random, 3, 64, Grid::integer4, 32);
    const std::vector<ParameterRows> parameters = {place(bench, rows, &weight),
                                                   place(bench, groups, &weight, 2)};
    codes_backend().quantize({.parameters = parameters});
    CHECK(weight.codes == Grid::none);
    CHECK(weight.code_group == 0);
    CHECK(weight.scaled);  // rows with groups have the factor one
    const Array scales = bench.read(weight.row_scale());
    CHECK(scales[1] == reference::effective_scale(rows.scale[1]));
    CHECK(scales[2] == 1);
    Array expected = rows.quantized(DType::bfloat16).q;
    const Array more = groups.quantized(DType::bfloat16).q;
    expected.insert(expected.end(), more.begin(), more.end());
    CHECK(inequality(plain_levels(bench, weight), expected) == "");
}

TEST_CASE("a NaN weight makes the scale of its group NaN where it has no code", "[codes][cuda]") {
    for (int64_t group : {128, 32}) {
        Random random(11);
        HostParameter host = random_parameter(random, 3, 128, Grid::integer4, group);
        host.master[128 + 70] = std::nan("");
        Bench bench(codes_backend());
        const ComputeWeight& weight = place_weight(bench, host, DType::bfloat16);
        const int64_t groups = 128 / group;
        const CU_BACKEND::WeightLayout layout = CU_BACKEND::layout_of(weight);
        const std::vector<float> scales = numbers_of<float>(
            codes_backend(), groups == 1 ? layout.row_scale : layout.group_scale, 3 * groups);
        for (int64_t i = 0; i < 3 * groups; ++i) {
            INFO("group of " << group << ", scale " << i);
            CHECK(std::isnan(scales[i]) == (i == groups + 70 / group));
        }
    }
}

// What a step writes is what quantize would write of the new weights and scales, in both forms.
TEST_CASE("adamw_and_quantize packs the new levels", "[codes][cuda]") {
    for (Grid grid : reference::quantized_grids())
        for (const MatrixCase& c : matrix_cases) {
            INFO(text(grid, c));
            Array masters[2], scales[2];
            for (int form = 0; form < 2; ++form) {
                Random random(12);
                Backend& backend = form == 0 ? codes_backend() : levels_backend();
                Bench bench(backend);
                HostParameter host = random_parameter(random, c.rows, c.columns, grid, c.group);
                ComputeWeight& weight =
                    bench.compute_weight(c.rows, c.columns, DType::bfloat16, false, false);
                ParameterRows parameter = place(bench, host, &weight);
                parameter.scale_gradient =
                    bench
                        .update("scale gradient", random.normals(host.scales(), DType::float32, 0.1),
                                DType::float32, {host.scales()})
                        .as<float>();
                backend.adamw_and_quantize({.parameters = {&parameter, 1},
                                            .step = example_step(),
                                            .squares = bench.input("squares", {1}, DType::float32, {1})});
                masters[form] = bench.read(master_of(parameter));
                scales[form] = bench.read(scale_of(parameter));
                CHECK(bench.damage() == "");
                host.master = masters[form];
                host.scale = scales[form];
                const Bytes expected = packed(host);
                if (form == 0) CHECK((bytes_of(backend, weight.storage, std::ssize(expected)) == expected));
                const Bytes stepped = storage_of(backend, weight);
                backend.quantize({.parameters = {&parameter, 1}});
                CHECK((storage_of(backend, weight) == stepped));
            }
            CHECK(inequality(masters[0], masters[1]) == "");
            CHECK(inequality(scales[0], scales[1]) == "");
        }
}
