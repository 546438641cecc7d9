// Copies from global to shared memory that run beside the thread that asks for them (cp.async). Addresses of 16-byte copies are
// 16-byte aligned.
#pragma once

namespace hwnas {

__device__ __forceinline__ void copy_async(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(static_cast<unsigned>(__cvta_generic_to_shared(to))), "l"(from) : "memory");
}
__device__ __forceinline__ void copies_arrived() { asm volatile("cp.async.wait_all;" ::: "memory"); }  // of this thread: a barrier follows
__device__ __forceinline__ void copy_async(void* to, const void* from, bool inside) {  // zeros if not inside; `from` must be readable
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(static_cast<unsigned>(__cvta_generic_to_shared(to))), "l"(from), "r"(inside ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_async4(void* to, const void* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(static_cast<unsigned>(__cvta_generic_to_shared(to))), "l"(from) : "memory");
}

}  // namespace hwnas
