// Dense matmuls by cuBLASLt. For every new shape the library proposes algorithms; each is timed once on the
// real operands and the fastest is kept, also for later processes (tuning_table.h). Shapes that the library
// has no algorithm for - rows at odd addresses - go to our own kernels.
//
// The library thinks in columns. A row-major matrix is its transpose read by columns, so out = a bᵀ becomes
// outᵀ = b aᵀ: operands change places.
//     nt   outᵀ (N x M) = op_T(b: K x N) op_N(a: K x M)
//     nn   outᵀ (K x M) = op_N(b: K x N) op_N(a: N x M)
//     tn   outᵀ (K x N) = op_N(b: K x M) op_T(a: N x M)
#include <cublasLt.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "kernels/cuda/matmul/dense_matmul.h"

namespace train_qat::CU_BACKEND {

namespace {

void check_cublas(cublasStatus_t status, const char* what, int line) {
    if (status != CUBLAS_STATUS_SUCCESS)
        throw std::runtime_error(std::string("cuBLASLt: ") + what + ": " + cublasLtGetStatusString(status) +
                                 " (" + __FILE__ + ":" + std::to_string(line) + ")");
}
#define CUBLAS_CALL(call) check_cublas((call), #call, __LINE__)

cudaDataType_t library_type(DType dtype) {
    return dtype == DType::bfloat16 ? CUDA_R_16BF : CUDA_R_32F;
}

// The largest power of two, up to 256, that divides the address of every row.
uint32_t alignment_of(const Tensor& matrix) {
    const uint64_t address = reinterpret_cast<uintptr_t>(matrix.data);
    const uint64_t pitch = static_cast<uint64_t>(matrix.shape[1] * size_of(matrix.dtype));
    uint32_t alignment = 256;
    while (address % alignment != 0 || pitch % alignment != 0) alignment /= 2;
    return alignment;
}

std::string hexadecimal(const void* data, size_t bytes) {
    static constexpr char digits[] = "0123456789abcdef";
    std::string text;
    for (size_t i = 0; i < bytes; ++i) {
        const unsigned char byte = static_cast<const unsigned char*>(data)[i];
        text += digits[byte >> 4];
        text += digits[byte & 15];
    }
    return text;
}

bool from_hexadecimal(const std::string& text, void* data, size_t bytes) {
    if (text.size() != 2 * bytes || text.find_first_not_of("0123456789abcdef") != std::string::npos)
        return false;
    for (size_t i = 0; i < bytes; ++i)
        static_cast<unsigned char*>(data)[i] =
            static_cast<unsigned char>(std::stoi(text.substr(2 * i, 2), nullptr, 16));
    return true;
}

// One shape: descriptors and the algorithm that was chosen for it.
struct Plan {
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t left = nullptr, right = nullptr, out = nullptr;
    cublasLtMatmulAlgo_t algorithm;
    bool supported = false;

    Plan() = default;
    Plan(const Plan&) = delete;
    Plan& operator=(const Plan&) = delete;
    ~Plan() {
        if (out != nullptr) cublasLtMatrixLayoutDestroy(out);
        if (right != nullptr) cublasLtMatrixLayoutDestroy(right);
        if (left != nullptr) cublasLtMatrixLayoutDestroy(left);
        if (operation != nullptr) cublasLtMatmulDescDestroy(operation);
    }
};

struct Operands {
    MatmulForm form;
    const Tensor &out, &left, &right;  // as the library sees them
    bool accumulate;
};

class CublasLtMatmul final : public DenseMatmul {
  public:
    explicit CublasLtMatmul(Device& device) : device_(device), workspace_(device, workspace_bytes) {
        CUBLAS_CALL(cublasLtCreate(&handle_));
    }
    ~CublasLtMatmul() override { cublasLtDestroy(handle_); }

    const char* name() const override { return "cuBLASLt"; }

    void multiply(MatmulForm form, const Tensor& out, const Tensor& a, const Tensor& b,
                  bool accumulate) override {
        const Operands operands{form, out, b, a, accumulate};
        const std::string key = key_of(operands);
        std::unique_ptr<Plan>& plan = plans_[key];
        if (plan == nullptr) plan = make_plan(operands, key);
        if (plan->supported)
            run(*plan, operands, out.data);
        else
            own_matmul(device_.stream(), form, out, a, b, accumulate);
    }

  private:
    static constexpr size_t workspace_bytes = 64 << 20;
    static constexpr int proposals = 16, repetitions = 5;

    static std::string key_of(const Operands& o) {
        const char* const form = o.form == MatmulForm::nt ? "nt" : o.form == MatmulForm::nn ? "nn" : "tn";
        std::string key = std::string("cublaslt-") + form + "-" + name_of(o.left.dtype) + "-" +
                          name_of(o.out.dtype) + (o.accumulate ? "-accumulate" : "");
        for (const Tensor* matrix : {&o.out, &o.left, &o.right})
            key += "-" + std::to_string(matrix->shape[0]) + "x" + std::to_string(matrix->shape[1]) + "a" +
                   std::to_string(alignment_of(*matrix));
        return key;
    }

    void run(const Plan& plan, const Operands& o, void* out) {
        const float alpha = 1.0f, beta = o.accumulate ? 1.0f : 0.0f;
        CUBLAS_CALL(cublasLtMatmul(handle_, plan.operation, &alpha, o.left.data, plan.left, o.right.data,
                                   plan.right, &beta, out, plan.out, out, plan.out, &plan.algorithm,
                                   workspace_.data(), workspace_bytes, device_.stream()));
    }

    static cublasLtMatrixLayout_t layout_of(const Tensor& matrix) {
        cublasLtMatrixLayout_t layout = nullptr;
        CUBLAS_CALL(cublasLtMatrixLayoutCreate(&layout, library_type(matrix.dtype),
                                               static_cast<uint64_t>(matrix.shape[1]),
                                               static_cast<uint64_t>(matrix.shape[0]), matrix.shape[1]));
        return layout;
    }

    std::unique_ptr<Plan> make_plan(const Operands& o, const std::string& key) {
        auto plan = std::make_unique<Plan>();
        CUBLAS_CALL(cublasLtMatmulDescCreate(&plan->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
        const cublasOperation_t transposed = CUBLAS_OP_T;
        if (o.form == MatmulForm::nt)
            CUBLAS_CALL(cublasLtMatmulDescSetAttribute(plan->operation, CUBLASLT_MATMUL_DESC_TRANSA,
                                                       &transposed, sizeof transposed));
        if (o.form == MatmulForm::tn)
            CUBLAS_CALL(cublasLtMatmulDescSetAttribute(plan->operation, CUBLASLT_MATMUL_DESC_TRANSB,
                                                       &transposed, sizeof transposed));
        plan->left = layout_of(o.left);
        plan->right = layout_of(o.right);
        plan->out = layout_of(o.out);
        const std::string* known = device_.tuning().find(key);
        plan->supported =
            known != nullptr && from_hexadecimal(*known, &plan->algorithm, sizeof plan->algorithm);
        if (!plan->supported) choose_algorithm(*plan, o, key);
        return plan;
    }

    struct Proposal {
        cublasLtMatmulAlgo_t algorithm;
    };

    std::vector<Proposal> propose(const Plan& plan, const Operands& o) {
        cublasLtMatmulPreference_t preference;
        CUBLAS_CALL(cublasLtMatmulPreferenceCreate(&preference));
        const auto set = [&](cublasLtMatmulPreferenceAttributes_t name, uint64_t value, size_t bytes) {
            CUBLAS_CALL(
                cublasLtMatmulPreferenceSetAttribute(preference, name, &value, bytes));  // little endian
        };
        constexpr size_t word = sizeof(uint32_t);
        set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes, sizeof workspace_bytes);
        set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(o.left), word);
        set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(o.right), word);
        set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(o.out), word);
        set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(o.out), word);
        // Split sums meet in the workspace in fixed order; the in-place scheme adds them as they come.
        const uint32_t deterministic = CUBLASLT_REDUCTION_SCHEME_MASK & ~CUBLASLT_REDUCTION_SCHEME_INPLACE;
        set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, deterministic, word);
        cublasLtMatmulHeuristicResult_t results[proposals];
        int count = 0;
        const cublasStatus_t status =
            cublasLtMatmulAlgoGetHeuristic(handle_, plan.operation, plan.left, plan.right, plan.out, plan.out,
                                           preference, proposals, results, &count);
        cublasLtMatmulPreferenceDestroy(preference);
        if (status == CUBLAS_STATUS_NOT_SUPPORTED) return {};
        CUBLAS_CALL(status);
        std::vector<Proposal> usable;
        for (int i = 0; i < count; ++i)
            if (results[i].state == CUBLAS_STATUS_SUCCESS) usable.push_back({results[i].algo});
        return usable;
    }

    void choose_algorithm(Plan& plan, const Operands& o, const std::string& key) {
        const std::vector<Proposal> candidates = propose(plan, o);
        if (candidates.empty()) return;
        // Timing writes: not over a sum that goes on. Other outputs are about to be written anyway, and a chunk of logits
        // may be more than what is left of the memory.
        DeviceBuffer trial;
        if (o.accumulate) trial = DeviceBuffer(device_, o.out.bytes());
        void* const out = o.accumulate ? trial.data() : o.out.data;
        double best = 0;
        for (const Proposal& candidate : candidates) {
            const cublasLtMatmulAlgo_t chosen = plan.algorithm;
            plan.algorithm = candidate.algorithm;
            const double seconds = device_.runtime().seconds([&] { run(plan, o, out); }, repetitions);
            if (plan.supported && seconds >= best) plan.algorithm = chosen;
            best = plan.supported ? std::min(best, seconds) : seconds;
            plan.supported = true;
        }
        device_.tuning().set(key, hexadecimal(&plan.algorithm, sizeof plan.algorithm));
    }

    Device& device_;
    DeviceBuffer workspace_;
    cublasLtHandle_t handle_ = nullptr;
    std::map<std::string, std::unique_ptr<Plan>> plans_;
};

}  // namespace

std::unique_ptr<DenseMatmul> make_dense_matmul(Device& device) {
    return std::make_unique<CublasLtMatmul>(device);
}

}  // namespace train_qat::CU_BACKEND
