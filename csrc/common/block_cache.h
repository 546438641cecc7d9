// Memory for what a kernel keeps between forward and backward, and for its scratch. A training step asks for the same large
// blocks again and again; from malloc each comes as fresh pages, which the system first clears: for the mixed cell that took
// as long as forward itself. So returned blocks are kept, but never more than were once in use together.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <list>
#include <mutex>
#include <new>

#include "common/huge_pages.h"

namespace hwnas {

class BlockCache {
public:
    static BlockCache& instance() {
        static auto* const cache = new BlockCache;  // outlives every static that might still return a block
        return *cache;
    }

    void* take(std::int64_t bytes) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            used_ += bytes;
            const auto fits = [=](const Block& block) { return block.bytes == bytes; };
            if (const auto found = std::find_if(kept_.begin(), kept_.end(), fits); found != kept_.end()) {
                void* const at = found->at;
                kept_bytes_ -= bytes;
                kept_.erase(found);
                return at;
            }
            peak_ = std::max(peak_, used_);
            shrink(peak_ - used_);
        }
        if (void* const at = allocate(bytes)) return at;
        release();
        if (void* const at = allocate(bytes)) return at;
        const std::lock_guard<std::mutex> lock(mutex_);
        used_ -= bytes;
        throw std::bad_alloc();
    }

    void give_back(void* at, std::int64_t bytes) {
        const std::lock_guard<std::mutex> lock(mutex_);
        used_ -= bytes;
        kept_.push_front({at, bytes});
        kept_bytes_ += bytes;
    }

    // Frees what is kept and forgets how much was in use.
    void release() {
        const std::lock_guard<std::mutex> lock(mutex_);
        shrink(0);
        peak_ = used_;
    }

    std::int64_t kept_bytes() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return kept_bytes_;
    }

private:
    struct Block {
        void* at;
        std::int64_t bytes;
    };

    static void* allocate(std::int64_t bytes) {
        const std::int64_t line = bytes >= kLarge ? kLarge : 64;
        void* const at = std::aligned_alloc(line, std::max<std::int64_t>(1, (bytes + line - 1) / line) * line);
        if (at && bytes >= kLarge) prefer_huge_pages(at, bytes);
        return at;
    }

    void shrink(std::int64_t limit) {
        for (; kept_bytes_ > limit; kept_.pop_back()) {
            kept_bytes_ -= kept_.back().bytes;
            std::free(kept_.back().at);
        }
    }

    static constexpr std::int64_t kLarge = 2 << 20;
    std::mutex mutex_;
    std::list<Block> kept_;  // the last returned first
    std::int64_t used_ = 0, peak_ = 0, kept_bytes_ = 0;
};

}  // namespace hwnas
