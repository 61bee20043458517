#include "model/run/event_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>

namespace train_qat {

namespace {

constexpr std::array<uint32_t, 256> crc_table() {
    std::array<uint32_t, 256> table{};
    for (uint32_t byte = 0; byte < 256; ++byte) {
        uint32_t remainder = byte;
        for (int bit = 0; bit < 8; ++bit) remainder = remainder >> 1 ^ (remainder & 1 ? 0x82f63b78u : 0u);
        table[byte] = remainder;
    }
    return table;
}

template <typename Number>
std::string little_endian(Number number) {
    std::string bytes(sizeof number, '\0');
    std::memcpy(bytes.data(), &number, sizeof number);
    return bytes;
}

std::string masked_crc(std::string_view bytes) {
    const uint32_t crc = crc32c(bytes);
    return little_endian((crc >> 15 | crc << 17) + 0xa282ead8u);
}

// ---- fields of a protocol buffer

std::string varint(uint64_t value) {
    std::string bytes;
    for (; value >= 128; value >>= 7) bytes += static_cast<char>(value | 128);
    return bytes + static_cast<char>(value);
}
std::string key(int field, int wire_type) {
    return varint(static_cast<uint64_t>(field << 3 | wire_type));
}
std::string integer_field(int field, int64_t value) {
    return key(field, 0) + varint(static_cast<uint64_t>(value));
}
std::string bytes_field(int field, const std::string& bytes) {
    return key(field, 2) + varint(bytes.size()) + bytes;
}
std::string double_field(int field, double value) {
    return key(field, 1) + little_endian(value);
}
std::string float_field(int field, double value) {
    return key(field, 5) + little_endian(static_cast<float>(value));
}

double seconds_since_1970() {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string event(int64_t step, const std::string& content) {
    return double_field(1, seconds_since_1970()) + integer_field(2, step) + content;
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
    static constexpr std::array<uint32_t, 256> table = crc_table();
    uint32_t crc = ~0u;
    for (const char byte : bytes) crc = crc >> 8 ^ table[(crc ^ static_cast<unsigned char>(byte)) & 255];
    return ~crc;
}

EventFile::EventFile(const std::string& output_directory, std::optional<int64_t> first_step)
    : path_(output_directory + "/events.out.tfevents." +
            std::to_string(static_cast<int64_t>(seconds_since_1970())) + "." + std::to_string(::getpid())) {
    descriptor_ = std::make_unique<FileDescriptor>(
        ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666));
    if (descriptor_->get() < 0)
        throw_file_error(path_, std::string("cannot create: ") + std::strerror(errno));
    append(event(0, bytes_field(3, "brain.Event:2")));
    constexpr int session_start = 1;
    if (first_step) append(event(*first_step, bytes_field(7, integer_field(1, session_start))));
}

void EventFile::write(int64_t step, std::initializer_list<Scalar> scalars) {
    std::string summary;
    for (const Scalar& scalar : scalars)
        summary += bytes_field(1, bytes_field(1, scalar.tag) + float_field(2, scalar.value));
    append(event(step, bytes_field(5, summary)));
}

void EventFile::append(const std::string& event) {
    const std::string length = little_endian(static_cast<uint64_t>(event.size()));
    const std::string record = length + masked_crc(length) + event + masked_crc(event);
    write_all(descriptor_->get(), path_, record.data(), static_cast<int64_t>(record.size()));
}

}  // namespace train_qat
