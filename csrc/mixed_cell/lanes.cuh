// The streams that one call works on.
#pragma once

#include <algorithm>
#include <mutex>
#include <vector>

#include "mixed_cell/launch.cuh"

namespace hwnas::mixed_cell::cuda {

// The streams of one call: work on the critical path in the first, of the highest priority; edges beside it in the others,
// because most launches are too small to fill the machine alone. A host thread has its own as long as it lives, because events are
// recorded and waited for in turn and streams may be part of a capture.
class Lanes {
    static constexpr int kDevices = 64;

public:
    static Status open(cudaStream_t caller, Lanes& lanes) {
        static thread_local Held held;
        int device = 0;
        HWNAS_CUDA_TRY(cudaGetDevice(&device));
        if (device >= kDevices) return {"the mixed cell knows 64 devices"};
        if (!held.of[device]) held.of[device] = idle().take(device);
        Resources& r = *held.of[device];
        if (!r.forked) {
            int lowest = 0, highest = 0;
            HWNAS_CUDA_TRY(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
            for (int k = 0; k < kLanes; ++k)
                HWNAS_CUDA_TRY(cudaStreamCreateWithPriority(&r.stream[k], cudaStreamNonBlocking, std::min(highest + k, lowest)));
            for (cudaEvent_t& event : r.event) HWNAS_CUDA_TRY(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
            HWNAS_CUDA_TRY(cudaEventCreateWithFlags(&r.forked, cudaEventDisableTiming));
        }
        lanes.resources_ = &r;
        lanes.caller_ = caller;
        for (int k = 0; k < kLanes; ++k) lanes.lane_[k].stream = r.stream[k];
        HWNAS_CUDA_TRY(cudaEventRecord(r.forked, caller));
        HWNAS_CUDA_TRY(cudaStreamWaitEvent(r.stream[0], r.forked, 0));
        return {};
    }
    Lane& operator[](int lane) { return lane_[lane]; }
    // What `to` does next comes after what `from` has been given so far.
    Status order(int from, int to) {
        HWNAS_CUDA_TRY(cudaEventRecord(resources_->event[from], lane_[from].stream));
        HWNAS_CUDA_TRY(cudaStreamWaitEvent(lane_[to].stream, resources_->event[from], 0));
        lane_[to].chained = false;
        forked_[to] = true;
        return {};
    }
    // Ends a call: what the caller's stream does next comes after the first lane, which the others have joined. If `work` failed,
    // the lanes that have work already are joined here, because the caller frees memory that they still write.
    Status close(const Status& work) {
        if (!work) {
            for (int lane = 1; lane < kLanes; ++lane)
                if (forked_[lane]) (void)order(lane, 0);
            (void)join();
            return work;
        }
        return join();
    }

private:
    Status join() {
        HWNAS_CUDA_TRY(cudaEventRecord(resources_->event[0], lane_[0].stream));
        HWNAS_CUDA_TRY(cudaStreamWaitEvent(caller_, resources_->event[0], 0));
        return {};
    }

    struct Resources {
        cudaStream_t stream[kLanes] = {};
        cudaEvent_t event[kLanes] = {}, forked = nullptr;
    };
    // What threads that have ended left for the next ones. Nothing is destroyed at a thread's end, when CUDA may be gone already.
    struct Idle {
        std::mutex mutex;
        std::vector<Resources*> of[kDevices];
        Resources* take(int device) {
            const std::lock_guard<std::mutex> lock(mutex);
            if (of[device].empty()) return new Resources;
            Resources* last = of[device].back();
            of[device].pop_back();
            return last;
        }
    };
    static Idle& idle() {
        static Idle* const all = new Idle;  // outlives every thread
        return *all;
    }
    struct Held {
        Resources* of[kDevices] = {};
        ~Held() {
            const std::lock_guard<std::mutex> lock(idle().mutex);
            for (int device = 0; device < kDevices; ++device)
                if (of[device]) idle().of[device].push_back(of[device]);
        }
    };
    Resources* resources_ = nullptr;
    cudaStream_t caller_ = nullptr;
    Lane lane_[kLanes];
    bool forked_[kLanes] = {};
};

}  // namespace hwnas::mixed_cell::cuda
