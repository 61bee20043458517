#include "model/run/reports.h"

#include <numeric>
#include <stdexcept>

#include "kernels/ranks/agreement.h"
#include "model/run/stop_signal.h"

namespace train_qat {

void StepReports::gather(double loss) {
    const bool stop = asked_to_stop_ || stop_requested();
    struct Report {
        double loss, stop;
    };
    std::vector<Report> reports(static_cast<size_t>(communicator_.size()));
    reports[static_cast<size_t>(communicator_.rank())] = {loss, stop ? 1.0 : 0.0};
    communicator_.gather_on_host(reports.data(), sizeof(Report));
    losses_.clear();
    for (const Report& report : reports) {
        losses_.push_back(report.loss);
        stop_ = stop_ || report.stop != 0;
    }
}

double StepReports::loss() const {
    return std::accumulate(losses_.begin(), losses_.end(), 0.0) / static_cast<double>(losses_.size());
}

void StepReports::check(int64_t step, double gradient_norm, const std::string& offender) {
    try {
        guard_.check(step, losses_, gradient_norm, offender);
    } catch (const std::runtime_error& error) {
        throw JointError(error.what());
    }
}

}  // namespace train_qat
