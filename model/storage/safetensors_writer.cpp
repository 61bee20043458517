// Writing safetensors files, by one rank or many.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>

#include "kernels/ranks/agreement.h"
#include "model/storage/checksum.h"
#include "model/storage/row_writer.h"
#include "model/storage/safetensors.h"

namespace train_qat {
namespace {

// Everything before the data: length and JSON text.
std::string build_header(std::span<const NamedTensor> tensors,
                         const std::map<std::string, std::string>& metadata) {
    check_named_tensors("write_safetensors", tensors);
    nlohmann::ordered_json header = nlohmann::ordered_json::object();
    if (!metadata.empty()) header["__metadata__"] = metadata;
    int64_t offset = 0;
    for (const NamedTensor& named : tensors) {
        const int64_t end = offset + whole_bytes(named);
        header[named.name] = {{"dtype", safetensors_name(named.tensor.dtype)},
                              {"shape", whole_shape(named)},
                              {"data_offsets", {offset, end}}};
        offset = end;
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    const uint64_t length = text.size();
    return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text;
}

int64_t data_bytes(std::span<const NamedTensor> tensors) {
    int64_t sum = 0;
    for (const NamedTensor& named : tensors) sum += whole_bytes(named);
    return sum;
}

void check_agreement(Communicator& communicator, const std::string& header) {
    const uint64_t mine = checksum_of(header);
    if (sum_over_ranks(communicator, mine) != mine * static_cast<uint64_t>(communicator.size()))
        throw std::logic_error("write_safetensors: the tensors of the ranks differ in name, dtype or shape");
}

int64_t bytes_answered_for(std::span<const NamedTensor> tensors, int rank) {
    int64_t sum = 0;
    for (const NamedTensor& named : tensors) sum += rows_answered_for(named, rank).bytes();
    return sum;
}

// Writes this rank's rows and returns the sum of their checksums.
uint64_t write_rows(OutputFile& file, Backend& backend, int rank, std::span<const NamedTensor> tensors,
                    int64_t data_offset) {
    RowWriter writer(file, backend);
    for (const NamedTensor& named : tensors) {
        writer.write(data_offset, named.tensor.data, rows_answered_for(named, rank));
        data_offset += whole_bytes(named);
    }
    return writer.finish();
}

}  // namespace

const char* safetensors_name(DType dtype) {
    switch (dtype) {
        case DType::float32:
            return "F32";
        case DType::bfloat16:
            return "BF16";
        case DType::int32:
            return "I32";
    }
    throw std::logic_error("safetensors: unknown dtype");
}

int64_t safetensors_bytes(std::span<const NamedTensor> tensors,
                          const std::map<std::string, std::string>& metadata) {
    return static_cast<int64_t>(build_header(tensors, metadata).size()) + data_bytes(tensors);
}

FileSummary write_safetensors(const std::string& path, Backend& backend, Communicator& communicator,
                              std::span<const NamedTensor> tensors,
                              const std::map<std::string, std::string>& metadata) {
    const std::string header = build_header(tensors, metadata);
    check_agreement(communicator, header);
    check_division("write_safetensors", communicator, tensors);

    const int rank = communicator.rank();
    const int64_t header_bytes = static_cast<int64_t>(header.size());
    FileSummary summary{header_bytes + data_bytes(tensors), 0};
    uint64_t mine = 0;
    // Of rank 0 this removes the file if anything fails on any rank.
    std::optional<OutputFile> file;
    run_on_rank_0(communicator, [&] {
        file.emplace(path, header_bytes + bytes_answered_for(tensors, rank));
        file->reserve(summary.bytes);
        file->write_at(0, header.data(), header_bytes);
        mine = checksum_of(header);
    });
    run_together(communicator, [&] {
        if (rank != 0) file.emplace(path, bytes_answered_for(tensors, rank), OutputFile::Shared());
        mine += write_rows(*file, backend, rank, tensors, header_bytes);
        file->flush();
    });
    summary.checksum = sum_over_ranks(communicator, mine);
    file->keep();
    return summary;
}

}  // namespace train_qat
