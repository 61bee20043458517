// Memory, scratch and recorded work of a device.
#include "kernels/cuda/platform/device.h"

#include <stdexcept>
#include <string>

namespace train_qat::CU_BACKEND {

namespace {

// Whose timings a tuning table holds.
std::string tuning_name(const DeviceProperties& card) {
    return card.name + ", " + std::to_string(card.major) + "." + std::to_string(card.minor) + ", " +
           card.libraries;
}

}  // namespace

Device::Device(const CudaOptions& options)
    : options_(options),
      runtime_(options.device),
      tuning_(options.tuning_file, tuning_name(runtime_.properties())) {}

void Device::report_once(const std::string& line) {
    if (reported_.insert(line).second && options_.report) options_.report(line);
}

void Device::release(void* memory) {
    records_.clear();
    runtime_.release(memory);
}

void* Device::scratch(int64_t bytes) {
    if (bytes > scratch_.bytes()) {
        if (recording_) throw std::logic_error("Device: recorded work asks for more scratch memory");
        scratch_ = DeviceBuffer();  // the old one goes before the new one comes
        scratch_ = DeviceBuffer(*this, bytes);
    }
    return scratch_.data();
}

// The first run takes what is chosen or allocated once - algorithms, scratch - and may drop records by that.
void Device::replay(const ReplayKey& key, const std::function<void()>& work) {
    if (!records_[key].seen) {
        work();
        records_[key].seen = true;
        return;
    }
    Record& record = records_[key];
    if (record.graph == nullptr) {
        recording_ = true;
        try {
            record.graph = runtime_.record(work);
        } catch (...) {
            recording_ = false;
            throw;
        }
        recording_ = false;
    }
    runtime_.launch(*record.graph);
}

}  // namespace train_qat::CU_BACKEND
