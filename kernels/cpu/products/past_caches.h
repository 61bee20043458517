// Writing memory that is read long after it would have left the caches: past them, so that no line is read only to be
// overwritten.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace train_qat {

// Of memcpy's meaning, once finish_past_caches() was called by the same thread. Worth it for whole lines of 64 bytes.
inline void copy_past_caches(void* destination, const void* source, int64_t bytes) {
#if defined(__AVX__)
#if defined(__AVX512F__)
    using Vector = __m512i;
    const auto store = [](void* to, const Vector& vector) {
        _mm512_stream_si512(static_cast<Vector*>(to), vector);
    };
#else
    using Vector = __m256i;
    const auto store = [](void* to, const Vector& vector) {
        _mm256_stream_si256(static_cast<Vector*>(to), vector);
    };
#endif
    constexpr int64_t width = sizeof(Vector);
    if (reinterpret_cast<uintptr_t>(destination) % width == 0) {
        const int64_t whole = bytes / width * width;
        for (int64_t i = 0; i < whole; i += width) {
            Vector vector;
            std::memcpy(&vector, static_cast<const char*>(source) + i, sizeof vector);
            store(static_cast<char*>(destination) + i, vector);
        }
        destination = static_cast<char*>(destination) + whole;
        source = static_cast<const char*>(source) + whole;
        bytes -= whole;
    }
#endif
    if (bytes > 0) std::memcpy(destination, source, static_cast<size_t>(bytes));
}

// Before other threads may read what was copied.
inline void finish_past_caches() {
#if defined(__AVX__)
    _mm_sfence();
#endif
}

}  // namespace train_qat
