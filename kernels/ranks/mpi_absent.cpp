// What kernels/ranks/mpi_communicator.h offers in a program that was built without MPI.
#if !defined(TRAIN_QAT_MPI)

#include <cstdlib>
#include <stdexcept>

#include "kernels/ranks/mpi_communicator.h"

namespace train_qat {

std::string mpi_unavailable() {
    return "this program was built without MPI (install libopenmpi-dev and build again)";
}

MpiSession::MpiSession() {
    throw std::runtime_error(mpi_unavailable());
}
MpiSession::~MpiSession() = default;

std::unique_ptr<Communicator> MpiSession::communicator(double) const {
    throw std::logic_error("MpiSession: without MPI");
}
std::unique_ptr<Communicator> MpiSession::group_communicator(int, double) const {
    throw std::logic_error("MpiSession: without MPI");
}
void MpiSession::abort(int exit_code) const {
    std::_Exit(exit_code);
}

}  // namespace train_qat

#endif
