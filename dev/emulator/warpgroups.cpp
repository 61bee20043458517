#include "dev/emulator/warpgroups.h"

#include <algorithm>
#include <cstring>

#include "dev/emulator/block.h"
#include "dev/emulator/hopper.h"
#include "dev/emulator/machine/tensor_core.h"
#include "dev/emulator/machine/tensor_map.h"

namespace train_qat::emulator {

namespace {

constexpr int warps_of_group = 4, k_step = 16, rows_of_warp = 16;
constexpr int64_t shared_window = 1 << 18;

float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

bool all_in_flight(const float* registers, size_t count) {
    for (size_t i = 0; i < count; ++i) {
        uint32_t bits;
        std::memcpy(&bits, registers + i, sizeof bits);
        if (bits != sum_in_flight) return false;
    }
    return true;
}

// Bytes from bits [shift, shift + 14) of a descriptor.
int64_t field(uint64_t descriptor, int shift) {
    return static_cast<int64_t>(descriptor >> shift & 0x3fff) << 4;
}

// Eight numbers of a row or column of an operand.
constexpr int chunk_elements = 8;

// The warp's fragments of a, as wgmma takes them from registers, into a (16 x 16).
void scatter_fragments(const unsigned char (*rows)[16], float* a) {
    for (int lane = 0; lane < warp_size; ++lane) {
        uint32_t registers[4];
        std::memcpy(registers, rows[lane], sizeof registers);
        for (int part = 0; part < 4; ++part) {
            float* pair = a + (lane / 4 + part % 2 * 8) * k_step + lane % 4 * 2 + part / 2 * 8;
            pair[0] = float_of_low_half(registers[part]);
            pair[1] = float_of_high_half(registers[part]);
        }
    }
}

void multiply_fragments(int n) {
    switch (n) {
        case 64:
            return multiply_operands<rows_of_warp, 64>();
        case 128:
            return multiply_operands<rows_of_warp, 128>();
        case 192:
            return multiply_operands<rows_of_warp, 192>();
        default:
            return multiply_operands<rows_of_warp, 256>();
    }
}

}  // namespace

void Warpgroups::start_block(Block& block, uint32_t threads) {
    block_ = &block;
    lanes_.assign(threads, Lane());
    warps_.assign((threads + warp_size - 1) / warp_size, WarpState());
    issues_.assign((warps_.size() + warps_of_group - 1) / warps_of_group, Issues());
}

void Warpgroups::fence() {
    lanes_[block_->thread_number()].fenced = true;
}

// ---- a product

void Warpgroups::multiply(float* registers, const Product& product, const Location& location) {
    const uint32_t thread = block_->thread_number();
    Lane& lane = lanes_[thread];
    if (lanes_.size() % (warps_of_group * warp_size) != 0)
        block_->fail("calls wgmma in a block of " + std::to_string(lanes_.size()) +
                         " threads: not all warpgroups have 128",
                     location);
    Warp& warp = *context.warp;
    WarpState& state = warps_[block_->warp_number()];
    Sums& sums = sums_of(lane, registers, product, location);
    if (warp.arrived == 0)
        state.product = product;
    else if (same_line(warp.location, location))
        check_same(product, state.product, "another lane of its warp", location);
    if (product.a_registers != nullptr) {
        Operand operand{product.a_registers, {}, state.committed, location};
        std::memcpy(operand.values, product.a_registers, sizeof operand.values);
        std::memcpy(warp.rows[warp.turn & 1][context.lane], operand.values, sizeof operand.values);
        lane.operands.push_back(operand);
    }
    sums.group = state.committed;
    sums.location = location;
    block_->observer().flops(int64_t{2} * 64 * product.n * k_step / (warps_of_group * warp_size), location);
    context.wgmma = true;
    if (block_->arrive_at_warp("wgmma", Ordering::none, location)) {
        follow_warpgroup(state, location);
        compute(state, location);
        block_->release_lanes(Ordering::none);
    }
    add_product(sums.values);
}

// The sums in these registers, which are in flight from now on.
Warpgroups::Sums& Warpgroups::sums_of(Lane& lane, float* registers, const Product& product,
                                      const Location& location) {
    const auto count = static_cast<size_t>(product.n / 2);
    const auto known = std::find_if(lane.sums.begin(), lane.sums.end(), [&](const Sums& other) {
        return registers < other.registers + other.values.size() && other.registers < registers + count;
    });
    const bool chained = known != lane.sums.end();
    if (chained && (known->registers != registers || known->values.size() != count))
        block_->fail("calls wgmma with sums that overlap those of the wgmma at " + text_of(known->location) +
                         ", which is in flight with another shape",
                     location);
    if (!lane.fenced && (!chained || product.a_registers != nullptr))
        block_->fail("calls wgmma without wgmma_fence since its registers were last free to change",
                     location);
    if (chained) {
        if (!all_in_flight(registers, count))
            block_->fail("calls wgmma with sums that were changed while the wgmma at " +
                             text_of(known->location) + " was in flight",
                         location);
        if (!product.accumulate) std::fill(known->values.begin(), known->values.end(), 0.0f);
        return *known;
    }
    std::vector<float> values(count, 0.0f);
    if (product.accumulate) std::copy_n(registers, count, values.begin());
    std::fill_n(registers, count, float_of(sum_in_flight));
    lane.sums.push_back({registers, std::move(values), 0, location});
    return lane.sums.back();
}

void Warpgroups::check_same(const Product& product, const Product& other, const char* whose,
                            const Location& location) const {
    if (product.n == other.n && product.a == other.a && product.b == other.b &&
        (product.a_registers != nullptr) == (other.a_registers != nullptr) &&
        product.a_transposed == other.a_transposed && product.b_transposed == other.b_transposed &&
        product.accumulate == other.accumulate)
        return;
    block_->fail(std::string("calls wgmma with other operands than ") + whose, location);
}

// The four warps of a warpgroup must issue the same products in the same order.
void Warpgroups::follow_warpgroup(WarpState& warp, const Location& location) {
    const uint32_t group = block_->warp_number() / warps_of_group;
    Issues& issues = issues_[group];
    const uint64_t index = warp.issued++ - issues.first;
    if (index >= issues.products.size()) {
        issues.products.push_back({warp.product, location});
    } else {
        const auto& [product, place] = issues.products[index];
        check_same(warp.product, product, "another warp of its warpgroup", location);
        if (!same_line(place, location))
            block_->fail("calls wgmma while another warp of its warpgroup calls the one at " + text_of(place),
                         location);
    }
    uint64_t slowest = warp.issued;
    for (uint32_t w = group * warps_of_group; w < (group + 1) * warps_of_group; ++w)
        slowest = std::min(slowest, warps_[w].issued);
    for (; issues.first < slowest; ++issues.first) issues.products.pop_front();
}

// The warp's 16 rows of the product, into the warp's memory for products.
void Warpgroups::compute(WarpState& state, const Location& location) {
    Warp& warp = *context.warp;
    const Product& product = state.product;
    reserve_operands(warp, rows_of_warp * k_step + k_step * product.n);
    float* const a = warp.operands;
    state.open.location = location;
    if (product.a_registers != nullptr)
        scatter_fragments(warp.rows[warp.turn & 1], a);
    else
        read_matrix(product.a, product.a_transposed,
                    static_cast<int>(block_->warp_number() % warps_of_group) * rows_of_warp, rows_of_warp, a,
                    k_step, 1, location);
    read_matrix(product.b, product.b_transposed, 0, product.n, a + rows_of_warp * k_step, 1, product.n,
                location);
    multiply_fragments(product.n);
}

// Rows [first, first + count) of an operand (rows x 16) into out[row * row_stride + k * k_stride].
void Warpgroups::read_matrix(uint64_t descriptor, bool transposed, int first, int count, float* out,
                             int row_stride, int k_stride, const Location& location) {
    constexpr int atom_rows = 8, row_bytes = 128, chunk_of_rows = 64;
    const int64_t start = field(descriptor, 0), leading = field(descriptor, 16),
                  stride = field(descriptor, 32);
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0)
        block_->fail("calls wgmma with a descriptor that is not of a tile with 128-byte swizzle", location);
    const auto take = [&](int64_t address, int row, int k, int row_step, int k_step_of_chunk) {
        const uint16_t* const bits = chunk(address, location);
        float* const to = out + row * row_stride + k * k_stride;
        for (int i = 0; i < chunk_elements; ++i)
            to[i * (row_step * row_stride + k_step_of_chunk * k_stride)] = float_of(uint32_t{bits[i]} << 16);
    };
    if (!transposed) {
        for (int r = 0; r < count; ++r) {
            const int row = first + r;
            const int64_t address = start + row / atom_rows * stride + row % atom_rows * row_bytes;
            for (int k = 0; k < k_step; k += chunk_elements) take(address + 2 * k, r, k, 0, 1);
        }
        return;
    }
    for (int k = 0; k < k_step; ++k)
        for (int r = 0; r < count; r += chunk_elements) {
            const int row = first + r;
            take(start + row / chunk_of_rows * leading + k / atom_rows * stride + k % atom_rows * row_bytes +
                     2 * (row % chunk_of_rows),
                 r, k, 1, 0);
        }
}

// 16 bytes at a shared address before swizzling, which stay closed to writers until the warp has waited.
const uint16_t* Warpgroups::chunk(int64_t address, const Location& location) {
    constexpr int64_t bytes = 16;
    Observer& observer = block_->observer();
    SharedMemory& memory = observer.shared_memory();
    const int64_t offset = swizzled_128(address % shared_window);
    const unsigned char* const place = memory.at(offset);
    if (block_->settings().checked) {
        observer.bulk_shared(place, bytes, Access::load, location);
        if (memory.any(SharedMemory::unswizzled, offset, bytes))
            block_->fail("wgmma reads with 128-byte swizzle what a tensor map without it has loaded: " +
                             memory.name_of(place),
                         location);
        observer.check_fenced(offset, bytes, "wgmma", location);
        memory.lock(offset, bytes);
        warps_[block_->warp_number()].open.chunks.push_back(offset);
    }
    return reinterpret_cast<const uint16_t*>(place);
}

// The running lane's part.
void Warpgroups::add_product(std::vector<float>& values) const {
    const size_t columns = 2 * values.size(), g = context.lane / 4, t = context.lane % 4;
    const float* const product = context.warp->product;
    for (size_t i = 0; i < values.size(); ++i)
        values[i] += product[(g + i / 2 % 2 * 8) * columns + i / 4 * 8 + 2 * t + i % 2];
}

// ---- groups

void Warpgroups::commit(const Location& location) {
    WarpState& state = warps_[block_->warp_number()];
    lanes_[block_->thread_number()].fenced = false;
    if (!block_->arrive_at_warp("wgmma_commit", Ordering::none, location)) return;
    ++state.committed;
    state.groups.push_back(std::move(state.open));
    state.open = Group();
    block_->release_lanes(Ordering::none);
}

void Warpgroups::wait(int pending, const Location& location) {
    WarpState& state = warps_[block_->warp_number()];
    Lane& lane = lanes_[block_->thread_number()];
    lane.fenced = false;
    if (block_->arrive_at_warp("wgmma_wait", Ordering::none, location)) {
        for (; state.groups.size() > static_cast<size_t>(pending); state.groups.pop_front())
            for (int64_t offset : state.groups.front().chunks)
                block_->observer().shared_memory().unlock(offset, 1);
        block_->release_lanes(Ordering::none);
    }
    settle(lane, state.committed - std::min<uint64_t>(state.committed, static_cast<uint64_t>(pending)),
           location);
}

// Groups below `retired` are complete: their sums are the lane's.
void Warpgroups::settle(Lane& lane, uint64_t retired, const Location& location) {
    for (const Operand& operand : lane.operands)
        if (operand.group < retired &&
            std::memcmp(operand.registers, operand.values, sizeof operand.values) != 0)
            block_->fail("the registers that the wgmma at " + text_of(operand.location) +
                             " reads were changed before it was waited for",
                         location);
    for (const Sums& sums : lane.sums) {
        if (sums.group >= retired) continue;
        if (!all_in_flight(sums.registers, sums.values.size()))
            block_->fail("the sums of the wgmma at " + text_of(sums.location) +
                             " were changed before it was waited for",
                         location);
        std::copy(sums.values.begin(), sums.values.end(), sums.registers);
    }
    std::erase_if(lane.operands, [&](const Operand& operand) { return operand.group < retired; });
    std::erase_if(lane.sums, [&](const Sums& sums) { return sums.group < retired; });
}

void Warpgroups::thread_ends(const Location& location) {
    const Lane& lane = lanes_[block_->thread_number()];
    if (!lane.sums.empty())
        block_->fail("returns while the wgmma at " + text_of(lane.sums.front().location) +
                         " is in flight: it has not waited for it",
                     location);
}

std::string Warpgroups::left_over(Location& location) const {
    for (const Issues& issues : issues_) {
        if (issues.products.empty()) continue;
        location = issues.products.front().second;
        return "the block ends, and not all warps of the warpgroup have called the wgmma";
    }
    return "";
}

std::string Warpgroups::user_of(int64_t offset, int64_t bytes) const {
    const auto reads = [&](const Group& group) {
        return std::any_of(group.chunks.begin(), group.chunks.end(),
                           [&](int64_t chunk) { return chunk < offset + bytes && offset < chunk + 16; });
    };
    for (const WarpState& warp : warps_) {
        if (reads(warp.open))
            return "the wgmma at " + text_of(warp.open.location) + " has not been waited for";
        for (const Group& group : warp.groups)
            if (reads(group)) return "the wgmma at " + text_of(group.location) + " has not been waited for";
    }
    return "";
}

}  // namespace train_qat::emulator
