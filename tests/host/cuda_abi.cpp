// Compiled, never run: driver/cuda_api.h against the toolkit's cuda.h.
#include <cuda.h>

#include "driver/cuda_api.h"

#include <cstddef>
#include <type_traits>

namespace ours = deep_gemm::driver::cuda;

// The type asks for 64 or 128 bytes of alignment, depending on the toolkit; the hardware for 64.
static_assert(sizeof(deep_gemm::TensorMap) == sizeof(CUtensorMap) && alignof(deep_gemm::TensorMap) >= 64);
static_assert(sizeof(ours::LaunchAttribute) == sizeof(CUlaunchAttribute));
static_assert(offsetof(ours::LaunchAttribute, value) == offsetof(CUlaunchAttribute, value));
static_assert(sizeof(ours::LaunchAttributeValue) == sizeof(CUlaunchAttributeValue));
static_assert(sizeof(ours::LaunchConfiguration) == sizeof(CUlaunchConfig));
static_assert(offsetof(ours::LaunchConfiguration, shared_memory_bytes) ==
              offsetof(CUlaunchConfig, sharedMemBytes));
static_assert(offsetof(ours::LaunchConfiguration, stream) == offsetof(CUlaunchConfig, hStream));
static_assert(offsetof(ours::LaunchConfiguration, attributes) == offsetof(CUlaunchConfig, attrs));
static_assert(offsetof(ours::LaunchConfiguration, num_attributes) == offsetof(CUlaunchConfig, numAttrs));

#define SAME(a, b) static_assert(static_cast<long long>(ours::a) == static_cast<long long>(b))
SAME(kSuccess, CUDA_SUCCESS);
SAME(kMultiprocessorCount, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
SAME(kL2CacheSize, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
SAME(kComputeCapabilityMajor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
SAME(kComputeCapabilityMinor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
SAME(kMaxSharedMemoryPerBlockOptin, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
SAME(kSharedSizeBytes, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES);
SAME(kLocalSizeBytes, CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES);
SAME(kNumRegs, CU_FUNC_ATTRIBUTE_NUM_REGS);
SAME(kMaxDynamicSharedSizeBytes, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
SAME(kNonPortableClusterSizeAllowed, CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED);
SAME(kJitErrorLogBuffer, CU_JIT_ERROR_LOG_BUFFER);
SAME(kJitErrorLogBufferSizeBytes, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES);
SAME(kClusterDimension, CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
SAME(kProgrammaticStreamSerialization, CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);
SAME(kUint8, CU_TENSOR_MAP_DATA_TYPE_UINT8);
SAME(kInt32, CU_TENSOR_MAP_DATA_TYPE_INT32);
SAME(kFloat16, CU_TENSOR_MAP_DATA_TYPE_FLOAT16);
SAME(kFloat32, CU_TENSOR_MAP_DATA_TYPE_FLOAT32);
SAME(kBfloat16, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
SAME(kSwizzleNone, CU_TENSOR_MAP_SWIZZLE_NONE);
SAME(kSwizzle32B, CU_TENSOR_MAP_SWIZZLE_32B);
SAME(kSwizzle64B, CU_TENSOR_MAP_SWIZZLE_64B);
SAME(kSwizzle128B, CU_TENSOR_MAP_SWIZZLE_128B);
SAME(kL2PromotionNone, CU_TENSOR_MAP_L2_PROMOTION_NONE);
SAME(kL2Promotion256B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
SAME(kCaptureThreadLocal, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
SAME(kCaptureRelaxed, CU_STREAM_CAPTURE_MODE_RELAXED);
static_assert(CU_LAUNCH_PARAM_BUFFER_POINTER_AS_INT == 1 && CU_LAUNCH_PARAM_BUFFER_SIZE_AS_INT == 2);
static_assert(CU_LAUNCH_PARAM_END_AS_INT == 0);
static_assert(std::is_same_v<CUdevice, ours::DeviceId> && std::is_same_v<CUdeviceptr, ours::Address>);
