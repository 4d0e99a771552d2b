#include "pool.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <unordered_map>

#if defined(__unix__) || defined(__APPLE__)
#define FASTRES_HAS_MMAP
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace fastres {
namespace {

constexpr size_t kSmallest = size_t{1} << 17;
constexpr size_t kGranule = size_t{1} << 12;
// Behind every place: tensors whose size is a power of two would otherwise lie at the same offset
// in every cache and page, and get in each other's way.
constexpr size_t kStagger = kGranule + 256;
constexpr size_t kHugePage = size_t{1} << 21;

thread_local bool inside_scope = false;

class Pool {
 public:
  Pool() { reserve(); }

  // Null where the arena has no such place.
  void* take(size_t bytes) {
    const size_t size = (bytes + kGranule - 1) / kGranule * kGranule + kStagger;
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto place = std::find_if(free_.begin(), free_.end(),
                                    [size](const auto& range) { return range.second >= size; });
    if (place == free_.end()) {
      return nullptr;
    }
    char* const start = place->first;
    const size_t rest = place->second - size;
    free_.erase(place);
    if (rest > 0) {
      free_.emplace(start + size, rest);
    }
    sizes_.emplace(start, size);
    used_ += size;
    peak_ = std::max(peak_, used_);
    held_ = std::max(held_, static_cast<size_t>(start + size - arena_));
    return start;
  }

  // False where the place is not the pool's.
  bool give(void* start) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = sizes_.find(start);
    if (found == sizes_.end()) {
      return false;
    }
    used_ -= found->second;
    auto range = free_.emplace(static_cast<char*>(start), found->second).first;
    sizes_.erase(found);
    const auto after = std::next(range);
    if (after != free_.end() && range->first + range->second == after->first) {
      range->second += after->second;
      free_.erase(after);
    }
    if (range != free_.begin()) {
      const auto before = std::prev(range);
      if (before->first + before->second == range->first) {
        before->second += range->second;
        free_.erase(range);
      }
    }
    return true;
  }

  void release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    size_t top = 0;
    for (const auto& [start, size] : sizes_) {
      top = std::max(top, static_cast<size_t>(static_cast<char*>(start) + size - arena_));
    }
#if defined(FASTRES_HAS_MMAP)
    // whole pages only: the first and the last may hold part of a live tensor
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    for (const auto& [start, size] : free_) {
      const auto from = (reinterpret_cast<uintptr_t>(start) + page - 1) / page * page;
      const auto held_to = reinterpret_cast<uintptr_t>(arena_ + held_);
      const auto to = std::min(reinterpret_cast<uintptr_t>(start + size), held_to) / page * page;
      if (from < to) {
        madvise(reinterpret_cast<void*>(from), to - from, MADV_DONTNEED);
      }
    }
#endif
    held_ = top;
    peak_ = used_;
  }

  // Around a fork: with another thread inside, the child would wait forever for a lock whose holder
  // it does not have.
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

  PoolStatistics statistics() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {static_cast<int64_t>(used_), static_cast<int64_t>(held_), static_cast<int64_t>(peak_)};
  }

 private:
  // Reserves addresses, not memory: as many as the machine has bytes, less where that is refused.
  void reserve() {
#if defined(FASTRES_HAS_MMAP)
    size_t bytes = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
    for (; bytes >= (size_t{1} << 28); bytes /= 2) {
      void* const start = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (start == MAP_FAILED) {
        continue;
      }
      const auto address = reinterpret_cast<uintptr_t>(start);
      arena_ = reinterpret_cast<char*>((address + kHugePage - 1) / kHugePage * kHugePage);
#if defined(MADV_HUGEPAGE)
      madvise(arena_, bytes, MADV_HUGEPAGE);
#endif
      free_.emplace(arena_, bytes);
      return;
    }
#endif
  }

  std::mutex mutex_;
  char* arena_ = nullptr;
  std::map<char*, size_t> free_;
  std::unordered_map<void*, size_t> sizes_;
  size_t used_ = 0;
  size_t held_ = 0;
  size_t peak_ = 0;
};

// Never destroyed: tensors may outlive the static objects of this library.
Pool& pool() {
  static Pool* const instance = [] {
    static Pool* const made = new Pool;
#if defined(FASTRES_HAS_MMAP)
    pthread_atfork([] { made->lock(); }, [] { made->unlock(); }, [] { made->unlock(); });
#endif
    return made;
  }();
  return *instance;
}

c10::Allocator* before_us = nullptr;

void give_back(void* block) {
  if (block != nullptr && !pool().give(block)) {
    before_us->raw_deleter()(block);
  }
}

// Stands before PyTorch's CPU allocator, and is PyTorch's wherever no PoolScope lives.
class PooledAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (!inside_scope || bytes < kSmallest) {
      return before_us->allocate(bytes);
    }
    void* block = pool().take(bytes);
    if (block == nullptr) {
      return before_us->allocate(bytes);
    }
    if (c10::memoryProfilingEnabled()) {
      const auto now = pool().statistics();
      c10::reportMemoryUsageToProfiler(block, static_cast<int64_t>(bytes), now.used, now.held,
                                       c10::Device(c10::DeviceType::CPU));
    }
    return {block, block, &give_back, c10::Device(c10::DeviceType::CPU)};
  }

  // oneDNN's scratch memory comes and goes through raw pointers, from both allocators.
  c10::DeleterFnPtr raw_deleter() const override {
    return before_us->raw_deleter() == nullptr ? nullptr : &give_back;
  }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    before_us->copy_data(to, from, bytes);
  }
};

// glibc's malloc keeps memory for blocks as large as the largest that it was ever given back, up to
// 32 MiB, and returns what is larger to the system, to be cleared again at the next touch. A step
// of PyTorch's teaches it that; of ours, only what is outside the fused operators still passes through
// it: in ResNet-50 the classifier's gradient and what SGD copies, some 6,000 page faults a step.
void teach_malloc() {
#if defined(__GLIBC__)
  constexpr size_t kLargest = (size_t{4} << 20) * sizeof(long);
  void* volatile block = std::malloc(kLargest - 2 * kGranule);  // not touched: addresses only
  std::free(block);
#endif
}

void install() {
  static PooledAllocator* const allocator = [] {
    teach_malloc();
    before_us = c10::GetAllocator(c10::DeviceType::CPU);
    auto* const ours = new PooledAllocator;
    // 255 is the highest priority: a later, weaker registration must not unseat ours silently.
    c10::SetAllocator(c10::DeviceType::CPU, ours, 255);
    return ours;
  }();
  (void)allocator;
}

}  // namespace

PoolScope::PoolScope() : outer_(inside_scope) {
  install();
  inside_scope = true;
}

PoolScope::~PoolScope() { inside_scope = outer_; }

PoolStatistics pool_statistics() { return pool().statistics(); }

void pool_release() { pool().release(); }

}  // namespace fastres
