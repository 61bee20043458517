#include "dev/emulator/block.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <exception>

#include "dev/emulator/hopper.h"
#include "dev/emulator/machine/sanitizers.h"

namespace train_qat::emulator {

namespace {

thread_local Block* running_block = nullptr;

std::string text_of(const uint3& index) {
    return "(" + std::to_string(index.x) + "," + std::to_string(index.y) + "," + std::to_string(index.z) +
           ")";
}

uint3 index_in(const dim3& extent, int64_t number) {
    const int64_t row = number / extent.x;
    return {static_cast<unsigned>(number % extent.x), static_cast<unsigned>(row % extent.y),
            static_cast<unsigned>(row / extent.y)};
}

}  // namespace

std::string text_of(const Location& location) {
    return std::string(location.file_name()) + ":" + std::to_string(location.line());
}

bool same_line(const Location& a, const Location& b) {
    return a.line() == b.line() &&
           (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

Block::Block() : hopper_(std::make_unique<Hopper>()) {}

Block::~Block() = default;

Block* Block::running() {
    return running_block;
}

// ---- a block's life

std::string Block::run(const Launch& launch, const Settings& settings, int64_t number, AccessLog* log) {
    const Hidden hidden;
    start(launch, settings, number, log);
    running_block = this;
    context.observed = observer_.observes();
    make_current(*next_thread());
    Fiber::switch_to(home_, fiber_of(*current_));
    running_block = nullptr;
    context = Context();
    if (!error_.empty()) abandon();
    free_fibers_.insert(free_fibers_.end(), used_up_fibers_.rbegin(), used_up_fibers_.rend());
    used_up_fibers_.clear();
    return error_;
}

void Block::start(const Launch& launch, const Settings& settings, int64_t number, AccessLog* log) {
    launch_ = &launch;
    settings_ = &settings;
    error_.clear();
    gridDim = launch.grid;
    blockDim = launch.block;
    blockIdx = index_in(launch.grid, number);
    const auto count = static_cast<uint32_t>(launch.threads());
    number_threads(launch.block);
    warps_.resize((count + warp_size - 1) / warp_size);
    for (uint32_t w = 0; w < warps_.size(); ++w) {
        const uint32_t lanes = std::min<uint32_t>(warp_size, count - w * warp_size);
        warps_[w].alive = all_lanes >> (warp_size - lanes);
        warps_[w].arrived = warps_[w].at_barrier = 0;
    }
    alive_ = count;
    at_barrier_ = barriers_ = 0;
    hopper_used_ = false;
    waits_.assign(count, Wait());
    observer_.start_block(settings, log, number, count, launch.shared_bytes);
    observer_.barrier(warps_);
    schedule_.start(warps_, settings.schedule_seed, static_cast<uint64_t>(number));
    if (one_fiber_per_thread) tokens_ = std::make_unique<Tokens>();
}

// No thread has a fiber between blocks, so often there is nothing to do.
void Block::number_threads(const dim3& extent) {
    if (extent.x == extent_.x && extent.y == extent_.y && extent.z == extent_.z) return;
    extent_ = extent;
    const uint32_t count = extent.x * extent.y * extent.z;
    threads_.resize(count);
    for (uint32_t i = 0; i < count; ++i) threads_[i] = {index_in(extent, i), i, nullptr};
}

// Suspended threads never go on: their stacks are used afresh.
void Block::abandon() {
    for (Thread& thread : threads_) {
        if (thread.fiber == nullptr) continue;
        thread.fiber->restart();
        free_fibers_.push_back(thread.fiber);
        thread.fiber = nullptr;
    }
}

// ---- fibers

void Block::make_current(Thread& thread) {
    current_ = &thread;
    threadIdx = thread.index;
    context.warp = &warps_[thread.number / warp_size];
    context.lane = thread.number % warp_size;
}

// Where no thread can go on, a bulk copy may let one.
Block::Thread* Block::next_thread() {
    if (hopper_used_ && schedule_.seeded()) hopper_->copies.maybe_land();
    while (error_.empty()) {
        const int number = schedule_.take();
        if (number >= 0) return &threads_[static_cast<size_t>(number)];
        if (alive_ == 0 || !hopper_used_ || !hopper_->copies.land_one()) break;
    }
    if (error_.empty() && alive_ > 0) error_ = deadlock();
    return nullptr;
}

Fiber* Block::take_fiber() {
    if (free_fibers_.empty()) {
        fibers_.push_back(
            std::make_unique<Fiber>(static_cast<int>(fibers_.size()), &Block::run_threads, this));
        return fibers_.back().get();
    }
    Fiber* fiber = free_fibers_.back();
    free_fibers_.pop_back();
    return fiber;
}

Fiber& Block::fiber_of(Thread& thread) {
    if (thread.fiber == nullptr) thread.fiber = take_fiber();
    return *thread.fiber;
}

// The running thread waits; returns when it may go on.
__attribute__((noinline)) void Block::yield() {
    observer_.thread_waits();
    Thread* waiting = current_;
    Thread* next = next_thread();
    if (next == nullptr) throw Failure{error_};
    if (next == waiting) return;
    make_current(*next);
    Fiber::switch_to(*waiting->fiber, fiber_of(*next));
}

void Block::run_threads(void* block) {
    static_cast<Block*>(block)->thread_loop();
}

// On each fiber: runs the current thread, then the next one that has not started, until a suspended one is
// next.
void Block::thread_loop() {
    for (;;) {
        run_kernel();
        const Hidden hidden;
        Fiber* fiber = current_->fiber;
        current_->fiber = nullptr;
        Thread* next = error_.empty() ? next_thread() : nullptr;
        if (next != nullptr && next->fiber == nullptr && !one_fiber_per_thread) {
            next->fiber = fiber;
            make_current(*next);
            continue;
        }
        (one_fiber_per_thread ? used_up_fibers_ : free_fibers_).push_back(fiber);
        if (next != nullptr) make_current(*next);
        Fiber::switch_to(*fiber, next != nullptr ? fiber_of(*next) : home_);
    }
}

TRAIN_QAT_NOT_SEEN void Block::run_kernel() {
    acquire_from(&launch_->started);
    try {
        launch_->thread();
        end_thread();
    } catch (const Failure& failure) {
        error_ = failure.message;
    } catch (const std::exception& exception) {
        error_ = message(std::string("throws ") + exception.what(), launch_->where);
    }
    release_to(&launch_->finished);
}

void Block::end_thread() {
    const Hidden hidden;
    observer_.thread_waits();
    Warp& warp = *context.warp;
    warp.alive &= ~(1u << context.lane);
    if (warp.arrived != 0)
        fail(std::string("returns while ") + lanes_text(warp.arrived) + " in " + warp.function,
             warp.location);
    if (warp.alive == 0) observer_.warp_ends(warp_number());
    if (hopper_used_) {
        hopper_->copies.thread_ends(launch_->where);
        hopper_->warpgroups.thread_ends(launch_->where);
    }
    --alive_;
    if (hopper_used_ && alive_ == 0) end_hopper();
    if (at_barrier_ > 0 && at_barrier_ == alive_) complete_barrier();
}

void Block::end_hopper() {
    Location location = launch_->where;
    hopper_->copies.block_ends();
    std::string text = hopper_->named.left_over(location);
    if (text.empty()) text = hopper_->warpgroups.left_over(location);
    if (!text.empty()) fail(text, location);
}

// ---- waiting

void Block::suspend(const Wait& wait) {
    Wait& mine = waits_[current_->number];
    mine = wait;
    yield();
    mine.kind = Wait::Kind::nothing;
}

void Block::wake(uint32_t thread) {
    schedule_.add(thread / warp_size, 1u << thread % warp_size);
}

void Block::give_way() {
    constexpr uint64_t one_in = 4;
    if (!schedule_.seeded() || schedule_.draw(one_in) != 0) return;
    wake(current_->number);
    schedule_.maybe_reorder();
    yield();
}

bool Block::arrive_at_warp(const char* function, Ordering ordering, const Location& location) {
    Warp& warp = *context.warp;
    if (warp.arrived == 0) {
        warp.function = function;
        warp.location = location;
        if (warp.alive != all_lanes)
            fail(std::string("calls ") + function + ", but of its warp lane " +
                     std::to_string(std::countr_one(warp.alive)) + " has returned or does not exist",
                 location);
        if (warp.at_barrier != 0)
            fail(std::string("calls ") + function + " while " + lanes_text(warp.at_barrier) +
                     " in block_sync at " + text_of(barrier_),
                 location);
    } else if (warp.function != function || !same_line(warp.location, location)) {
        fail(std::string("calls ") + function + " while " + lanes_text(warp.arrived) + " in " +
                 warp.function + " at " + text_of(warp.location),
             location);
    }
    if (ordering == Ordering::memory && tokens_) release_to(&tokens_->warp[warp_number()][warp.turn & 1]);
    warp.arrived |= 1u << context.lane;
    if (warp.arrived == all_lanes) return true;
    const uint32_t turn = warp.turn;
    yield();
    if (ordering == Ordering::memory && tokens_) acquire_from(&tokens_->warp[warp_number()][turn & 1]);
    return false;
}

void Block::release_lanes(Ordering ordering) {
    Warp& warp = *context.warp;
    observer_.warp_meets(warp, warp_number(), ordering);
    if (ordering == Ordering::memory && tokens_) acquire_from(&tokens_->warp[warp_number()][warp.turn & 1]);
    warp.arrived = 0;
    ++warp.turn;
    if (!schedule_.seeded()) {
        schedule_.add(warp_number(), all_lanes & ~(1u << context.lane));
    } else {
        schedule_.maybe_reorder();
        schedule_.add(warp_number(), all_lanes);
        yield();
    }
}

void Block::wait_for_block(const Location& location) {
    Warp& warp = *context.warp;
    if (warp.arrived != 0)
        fail(std::string("calls block_sync while ") + lanes_text(warp.arrived) + " in " + warp.function +
                 " at " + text_of(warp.location),
             location);
    if (at_barrier_ == 0)
        barrier_ = location;
    else if (!same_line(barrier_, location))
        fail("barrier divergence: calls block_sync while other threads wait in block_sync at " +
                 text_of(barrier_),
             location);
    char* token = tokens_ ? &tokens_->barrier[barriers_ & 1] : nullptr;
    if (token != nullptr) release_to(token);
    warp.at_barrier |= 1u << context.lane;
    if (++at_barrier_ == alive_) complete_barrier();
    yield();
    if (token != nullptr) acquire_from(token);
}

void Block::complete_barrier() {
    at_barrier_ = 0;
    ++barriers_;
    observer_.barrier(warps_);
    schedule_.maybe_reorder();
    for (uint32_t w = 0; w < warps_.size(); ++w) {
        schedule_.add(w, warps_[w].at_barrier);
        warps_[w].at_barrier = 0;
    }
}

// ---- errors

std::string Block::index_of_thread(uint32_t number) const {
    return text_of(threads_[number].index);
}

std::string Block::index_of_block(int64_t number) const {
    return text_of(index_in(launch_->grid, number));
}

// "lanes 0, 3 of its warp wait"; long lists end early.
std::string Block::lanes_text(uint32_t lanes) const {
    constexpr int most = 4;
    std::string text = std::popcount(lanes) == 1 ? "lane " : "lanes ";
    int named = 0;
    for (uint32_t rest = lanes; rest != 0 && named < most; rest &= rest - 1, ++named)
        text += (named > 0 ? ", " : "") + std::to_string(std::countr_zero(rest));
    if (std::popcount(lanes) > most) text += " and " + std::to_string(std::popcount(lanes) - most) + " more";
    return text + (std::popcount(lanes) == 1 ? " of its warp waits" : " of its warp wait");
}

std::string Block::message_of(uint32_t thread, const std::string& text, const Location& location) const {
    return "kernel " + launch_->kernel + ", block " + text_of(blockIdx) + ", thread " +
           index_of_thread(thread) + ": " + text + " (" + text_of(location) + ")";
}

std::string Block::message(const std::string& text, const Location& location) const {
    return message_of(current_->number, text, location);
}

void Block::end_with(const std::string& error) {
    if (error_.empty()) error_ = error;
}

void Block::fail(const std::string& text, const Location& location) {
    throw Failure{message(text, location)};
}

Hopper& Block::hopper(const Location& location) {
    if (settings_->compute_capability < 90)
        fail("uses an instruction of compute capability 9.0; the emulated device has " +
                 std::to_string(settings_->compute_capability / 10) + "." +
                 std::to_string(settings_->compute_capability % 10) + " (Settings::compute_capability)",
             location);
    if (!hopper_used_) hopper_->start_block(*this, static_cast<uint32_t>(threads_.size()));
    hopper_used_ = true;
    return *hopper_;
}

// ---- the thread functions' side

void reserve_operands(Warp& warp, int64_t floats) {
    if (floats <= warp.operand_capacity) return;
    const Hidden hidden;
    warp.operand_memory.reset(new float[static_cast<size_t>(floats)]);
    warp.operands = warp.operand_memory.get();
    warp.operand_capacity = floats;
}

void reserve_product(Warp& warp, int64_t floats) {
    if (floats <= warp.product_capacity) return;
    const Hidden hidden;
    warp.product_memory.reset(new float[static_cast<size_t>(floats)]);
    warp.product = warp.product_memory.get();
    warp.product_capacity = floats;
}

bool arrive_at_warp(const char* function, Ordering ordering, const Location& location) {
    const Hidden hidden;
    return running_block->arrive_at_warp(function, ordering, location);
}
void release_lanes(Ordering ordering) {
    const Hidden hidden;
    running_block->release_lanes(ordering);
}
void meet(const char* function, Ordering ordering, const Location& location) {
    const Hidden hidden;
    if (running_block->arrive_at_warp(function, ordering, location)) running_block->release_lanes(ordering);
}
void wait_for_block(const Location& location) {
    const Hidden hidden;
    running_block->wait_for_block(location);
}

}  // namespace train_qat::emulator
