// Shapes at which the CUDA kernels over rows take other ways than in the tests of their operations: rows too
// long for shared memory, more rows than one sort holds, odd addresses. All backends run them.
#include <string>

#include "test/support/catch.h"
#include "test/support/device.h"

using namespace train_qat;
using namespace train_qat::test;

TEST_CASE("embedding_backward adds rows in order, however many", "[embedding_backward][device]") {
    struct Case {
        int64_t M, V, C;
        double one_token;  // part of the rows that have the same token
    };
    for (const Case& c : {Case{1024, 3, 4, 0}, Case{1025, 2000, 8, 0}, Case{5000, 77, 5, 0},
                          Case{2500, 9, 4, 1}, Case{2500, 3000, 12, 0.5}}) {
        Random random(c.M);
        const Array dq = random.normals(c.V * c.C), dy = random.normals(c.M * c.C);
        Array tokens = random.tokens(c.M, c.V);
        for (double& token : tokens)
            if (random.uniform() < c.one_token) token = static_cast<double>(c.V - 1);
        // In float32, without a scale, one order of additions has one result.
        Array expected = dq;
        for (int64_t m = 0; m < c.M; ++m)
            for (int64_t k = 0; k < c.C; ++k) {
                double& sum = expected[static_cast<int64_t>(tokens[m]) * c.C + k];
                sum = static_cast<float>(sum + dy[m * c.C + k]);
            }
        for (const BackendUnderTest& device : backends_under_test()) {
            INFO(device.name << ", M " << c.M << " V " << c.V << " C " << c.C);
            Bench bench(*device.backend);
            const Tensor out = bench.update("dq", dq, DType::float32, {c.V, c.C});
            device.backend->embedding_backward(
                {.dq = out,
                 .dy = bench.input("dy", dy, DType::float32, {c.M, c.C}),
                 .tokens = bench.input("tokens", tokens, DType::int32, {c.M})});
            CHECK(inequality(bench.read(out), expected) == "");
            CHECK(bench.damage() == "");
        }
    }
}

TEST_CASE("rmsnorm of very long rows, and of very many",
          "[residual_rmsnorm_forward][rmsnorm_backward][device]") {
    struct Case {
        int64_t M, C;
    };
    constexpr float epsilon = 1e-5f;
    for (DType type : compute_types()) {
        for (Case c : {Case{17, 10000}, Case{3, 24001}, Case{9, 24004}, Case{17001, 3}}) {
            if (small_shapes_only() && c.C > 3) c.M = 2;
            Random random(c.C);
            const Array residual = random.normals(c.M * c.C), branch = random.normals(c.M * c.C, type);
            const Array weight = random.normals(c.C), column_scale = random.scales(c.C, 0.5);
            const reference::RMSNormForward forward = reference::rmsnorm_forward(
                residual, reference::scale_columns(branch, column_scale), weight, epsilon, c.M, c.C);
            const Array rstd = reference::rounded(
                DType::float32, reference::rmsnorm_forward(residual, {}, weight, epsilon, c.M, c.C).rstd);
            const Array before = random.normals(c.M * c.C, DType::float32, 1e-2);
            const reference::RMSNormBackward backward = reference::rmsnorm_backward(
                before, {}, branch, residual, rstd, weight, column_scale, c.M, c.C);
            for (const BackendUnderTest& device : backends_under_test(type)) {
                INFO(device.name << " " << name_of(type) << ", M " << c.M << " C " << c.C);
                Bench bench(*device.backend);
                Backend& backend = *device.backend;
                const Tensor in = bench.input("residual", residual, DType::float32, {c.M, c.C});
                const Tensor other = bench.input("branch", branch, type, {c.M, c.C});
                const Tensor scale = bench.input("column_scale", column_scale, DType::float32, {c.C});
                const Tensor w = bench.input("weight", weight, DType::float32, {c.C});
                const Tensor out = bench.output("residual_out", DType::float32, {c.M, c.C});
                const Tensor y = bench.output("y", type, {c.M, c.C});
                backend.residual_rmsnorm_forward({.residual_out = out,
                                                  .y = y,
                                                  .rstd = bench.output("rstd", DType::float32, {c.M}),
                                                  .residual_in = in,
                                                  .branch = other,
                                                  .column_scale = scale,
                                                  .weight = w,
                                                  .epsilon = epsilon});
                CHECK(difference(bench.read(y), forward.y, type, float32_sum(c.C)) == "");

                const Tensor d_residual = bench.update("d_residual", before, DType::float32, {c.M, c.C});
                const Tensor dweight = bench.output("dweight", DType::float32, {c.C});
                const Tensor dz = bench.output("dz", type, {c.M, c.C});
                backend.rmsnorm_backward(
                    {.d_residual = d_residual,
                     .dweight = dweight,
                     .dz = dz,
                     .dy = other,
                     .residual = in,
                     .rstd = bench.input("rstd", rstd, DType::float32, {c.M}),
                     .weight = w,
                     .column_scale = scale,
                     .accumulate_residual = true,
                     .workspace = bench.workspace(backend.rmsnorm_backward_workspace(c.M, c.C))});
                CHECK(difference(bench.read(d_residual), backward.d_residual, DType::float32,
                                 float32_sum(c.C)) == "");
                CHECK(difference(bench.read(dweight), backward.dweight, DType::float32, float32_sum(c.M)) ==
                      "");
                CHECK(difference(bench.read(dz), backward.dz, type, float32_sum(c.C)) == "");
                CHECK(bench.damage() == "");
            }
        }
    }
}

TEST_CASE("bias and head norms of very many rows", "[bias_backward][head_norm_backward][device]") {
    const AttentionShape s{1, 17001, 1, 1, 2};
    const int64_t M = s.rows(), N = s.qkv_columns();
    const reference::Shape shape{s.batch, s.sequence, s.heads, s.kv_heads, s.head_dim};
    for (DType type : compute_types()) {
        Random random(5);
        const Array x = random.normals(M * N, type), dy = random.normals(M * N, type);
        const Array column_scale = random.scales(N, 0.5), weight = random.normals(s.head_dim);
        const Array rstd = reference::rounded(
            DType::float32, reference::head_norm_forward(x, column_scale, weight, weight, 1e-6, shape).rstd);
        const reference::HeadNormBackward expected =
            reference::head_norm_backward({}, {}, dy, x, rstd, column_scale, weight, weight, shape);
        const reference::BiasBackward bias = reference::bias_backward({}, dy, column_scale, M, N);
        for (const BackendUnderTest& device : backends_under_test(type)) {
            INFO(device.name << " " << name_of(type));
            Bench bench(*device.backend);
            Backend& backend = *device.backend;
            const Tensor dquery = bench.output("dquery_weight", DType::float32, {s.head_dim});
            const Tensor dkey = bench.output("dkey_weight", DType::float32, {s.head_dim});
            const Tensor in_weight = bench.input("weight", weight, DType::float32, {s.head_dim});
            const Tensor scale = bench.input("column_scale", column_scale, DType::float32, {N});
            const Tensor dx = bench.output("dx", type, {M, N}), dz = bench.update("dz", dy, type, {M, N});
            backend.head_norm_backward(
                {.dx = dx,
                 .dquery_weight = dquery,
                 .dkey_weight = dkey,
                 .dy = bench.input("dy", dy, type, {M, N}),
                 .x = bench.input("x", x, type, {M, N}),
                 .rstd = bench.input("rstd", rstd, DType::float32, {M, s.normed_heads()}),
                 .column_scale = scale,
                 .query_weight = in_weight,
                 .key_weight = in_weight,
                 .workspace = bench.workspace(backend.head_norm_backward_workspace(s)),
                 .shape = s});
            CHECK(difference(bench.read(dx), expected.dx, type, float32_sum(2)) == "");
            CHECK(difference(bench.read(dquery), expected.dquery_weight, DType::float32, float32_sum(M)) ==
                  "");
            CHECK(difference(bench.read(dkey), expected.dkey_weight, DType::float32, float32_sum(M)) == "");
            const Tensor dbias = bench.output("dbias", DType::float32, {N});
            backend.bias_backward({.dz = dz,
                                   .dbias = dbias,
                                   .column_scale = scale,
                                   .workspace = bench.workspace(backend.bias_backward_workspace(M, N))});
            CHECK(difference(bench.read(dbias), bias.dbias, DType::float32, float32_sum(M)) == "");
            CHECK(difference(bench.read(dz), bias.dz, type, float32_sum(1)) == "");
            CHECK(bench.damage() == "");
        }
    }
}

TEST_CASE("workspaces of sums over rows are large enough for fewer rows",
          "[rmsnorm_backward][bias_backward][head_norm_backward][device]") {
    for (const BackendUnderTest& device : backends_under_test()) {
        INFO(device.name);
        int64_t rmsnorm = 0, bias = 0, head_norm = 0;
        for (int64_t M : {1, 16, 17, 1000, 16384, 16385, 17408, 17409, 30000, 32768, 32769, 1000000}) {
            const auto grows = [](int64_t& bytes, int64_t more) {
                CHECK(more >= bytes);
                bytes = more;
            };
            grows(rmsnorm, device.backend->rmsnorm_backward_workspace(M, 8));
            grows(bias, device.backend->bias_backward_workspace(M, 8));
            grows(head_norm, device.backend->head_norm_backward_workspace({1, M, 2, 1, 8}));
        }
    }
}

TEST_CASE("rope of large heads and of many heads", "[rope_forward][rope_backward][device]") {
    for (DType type : compute_types()) {
        for (const AttentionShape& s :
             {AttentionShape{1, 35, 2, 1, 512}, AttentionShape{2, 3, 1, 1, 8200},
              AttentionShape{1, 5, 70, 35, 34}, AttentionShape{1, 33, 40, 20, 64}}) {
            Random random(4);
            const int64_t M = s.rows(), columns = s.qkv_columns(), half = s.head_dim / 2;
            reference::RopeTables tables = reference::rope_tables(s.sequence, s.head_dim, 10000);
            tables.cosines = reference::rounded(DType::float32, tables.cosines);
            tables.sines = reference::rounded(DType::float32, tables.sines);
            const reference::Shape shape{s.batch, s.sequence, s.heads, s.kv_heads, s.head_dim};
            const Array qkv = random.normals(M * columns, type), column_scale = random.scales(columns, 0.5);
            const reference::Result forward =
                reference::rope_forward(reference::scale_columns(qkv, column_scale), tables, shape);
            const reference::Result backward = reference::rope_backward(qkv, tables, column_scale, shape);
            for (const BackendUnderTest& device : backends_under_test(type)) {
                INFO(device.name << " " << name_of(type) << ", D " << s.head_dim << " H " << s.heads);
                Bench bench(*device.backend);
                const Tensor turned = bench.update("qkv", qkv, type, {M, columns});
                const Tensor turned_back = bench.update("dqkv", qkv, type, {M, columns});
                const Tensor cosines =
                    bench.input("cosines", tables.cosines, DType::float32, {s.sequence, half});
                const Tensor sines = bench.input("sines", tables.sines, DType::float32, {s.sequence, half});
                const Tensor scale = bench.input("column_scale", column_scale, DType::float32, {columns});
                device.backend->rope_forward(
                    {.qkv = turned, .cosines = cosines, .sines = sines, .column_scale = scale, .shape = s});
                device.backend->rope_backward({.dqkv = turned_back,
                                               .cosines = cosines,
                                               .sines = sines,
                                               .column_scale = scale,
                                               .shape = s});
                CHECK(difference(bench.read(turned), forward, type, 0x1p-22) == "");
                CHECK(difference(bench.read(turned_back), backward, type, 0x1p-22) == "");
                CHECK(bench.damage() == "");
            }
        }
    }
}

TEST_CASE("cross_entropy of large vocabularies, also at odd addresses", "[cross_entropy][device]") {
    const int64_t M = 3;
    for (const auto& [logit_type, type] :
         {std::pair{DType::float32, DType::float32}, std::pair{DType::float32, DType::bfloat16},
          std::pair{DType::bfloat16, DType::bfloat16}}) {
        for (int64_t V : {64, 50257, 50304, 58400}) {  // the last, in float32: beyond shared memory
            for (int64_t shift : {0, 1}) {             // of d_logits, in elements
                Random random(V);
                const Array logits = random.normals(M * V, logit_type, 3), targets = random.tokens(M, V);
                const Array column_scale = random.scales(V, 0.1);
                const float factor = 1e-3f;
                const reference::CrossEntropy expected = reference::cross_entropy(
                    reference::scale_columns(logits, column_scale), targets, column_scale, factor, M, V);
                for (const BackendUnderTest& device : backends_under_test(type)) {
                    INFO(device.name << " " << name_of(logit_type) << " to " << name_of(type) << ", V " << V
                                     << ", shift " << shift);
                    Bench bench(*device.backend);
                    Backend& backend = *device.backend;
                    const Tensor in = bench.input("logits", logits, logit_type, {M, V});
                    const Tensor target = bench.input("targets", targets, DType::int32, {M});
                    const Tensor scale = bench.input("column_scale", column_scale, DType::float32, {V});
                    const Tensor losses = bench.output("losses", DType::float32, {M});
                    const Tensor only_losses = bench.output("losses alone", DType::float32, {M});
                    const Tensor memory = bench.output("d_logits", type, {M * V + shift});
                    const Tensor d_logits(static_cast<char*>(memory.data) + shift * size_of(type), type,
                                          {M, V});
                    backend.cross_entropy({.losses = losses,
                                           .d_logits = d_logits,
                                           .logits = in,
                                           .targets = target,
                                           .column_scale = scale,
                                           .gradient_factor = factor});
                    backend.cross_entropy({.losses = only_losses,
                                           .logits = in,
                                           .targets = target,
                                           .column_scale = scale,
                                           .gradient_factor = factor});
                    CHECK(difference(bench.read(d_logits), expected.d_logits, type,
                                     4 * float32_sum(V) + 0x1p-19) == "");
                    CHECK(inequality(bench.read(only_losses), bench.read(losses)) == "");
                    if (logit_type == type && shift == 0) {
                        const Tensor both = bench.update("both", logits, type, {M, V});
                        backend.cross_entropy({.losses = only_losses,
                                               .d_logits = both,
                                               .logits = both,
                                               .targets = target,
                                               .column_scale = scale,
                                               .gradient_factor = factor});
                        CHECK(inequality(bench.read(both), bench.read(d_logits)) == "");
                        CHECK(inequality(bench.read(only_losses), bench.read(losses)) == "");
                    }
                    CHECK(bench.damage() == "");
                }
            }
        }
    }
}
