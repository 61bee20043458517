// What is wrong with an access that a check has refused.
#include "dev/emulator/block.h"
#include "dev/emulator/hopper.h"
#include "dev/emulator/observer.h"

namespace train_qat::emulator {

namespace {

const char* name_of(Access access) {
    return access == Access::load ? "load" : "store";
}

[[noreturn]] void fail(const std::string& text, const Location& location) {
    Block::running()->fail(text, location);
}

}  // namespace

std::string address_text(const void* address) {
    constexpr char digits[] = "0123456789abcdef";
    std::string text;
    for (auto rest = reinterpret_cast<uintptr_t>(address); rest != 0; rest /= 16)
        text.insert(text.begin(), digits[rest % 16]);
    return "0x" + (text.empty() ? "0" : text);
}

std::string Observer::place_of(const void* address) const {
    return shared_memory_.contains(address) ? shared_memory_.name_of(address) : address_text(address);
}

void Observer::explain(const void* address, int64_t bytes, const char* what, const Location& location) {
    if (accesses_ > settings_->patience)
        fail("has made " + std::to_string(settings_->patience) +
                 " accesses without waiting or returning: it waits in a loop for another thread",
             location);
    fail(std::string("misaligned ") + what + ": " + std::to_string(bytes) + " bytes at " +
             address_text(address) + ", which is not a multiple of " + std::to_string(alignment_of(bytes)),
         location);
}

void Observer::explain_global(const void* address, int64_t bytes, Access access, const Location& location) {
    const std::string what =
        std::string(name_of(access)) + " of " + std::to_string(bytes) + " bytes at " + address_text(address);
    if (shared_memory_.contains(address)) fail("global " + what + ", which is in shared memory", location);
    const Allocation* nearest = GlobalMemory::instance().below(address);
    std::string where = ", outside of all allocations";
    if (nearest != nullptr)
        where += ": byte " + std::to_string(static_cast<const unsigned char*>(address) - nearest->begin) +
                 " of one that has " + std::to_string(nearest->bytes);
    fail("global memory out of bounds: " + what + where, location);
}

void Observer::explain_shared(const void* address, int64_t bytes, Access access, const Location& location) {
    const int64_t offset = shared_memory_.offset_of(address);
    const std::string what = name_of(access);
    if (!shared_memory_.contains(address))
        fail("shared " + what + " at " + address_text(address) + ", which is not in shared memory", location);
    if (!shared_memory_.all_inside(offset, bytes))
        fail("shared memory out of bounds: " + what + " of " + std::to_string(bytes) + " bytes at " +
                 shared_memory_.name_of(address),
             location);
    const char* const does = access == Access::load ? "reads" : "writes";
    if (shared_memory_.any(SharedMemory::barrier, offset, bytes))
        fail(std::string(does) +
                 " a barrier as if it were plain shared memory: " + shared_memory_.name_of(address),
             location);
    if (shared_memory_.any(SharedMemory::landing, offset, bytes) ||
        (access == Access::store && shared_memory_.any(SharedMemory::locked, offset, bytes)))
        fail(std::string(does) + " shared memory in use: " +
                 Block::running()->hopper().user_of(offset, bytes) + ": " + shared_memory_.name_of(address),
             location);
    if (shared_memory_.any(SharedMemory::pending, offset, bytes))
        fail(std::string(does) + " shared memory whose cp_async_16 has not been waited for: " +
                 shared_memory_.name_of(address),
             location);
    fail("reads unwritten shared memory: " + shared_memory_.name_of(address), location);
}

}  // namespace train_qat::emulator
