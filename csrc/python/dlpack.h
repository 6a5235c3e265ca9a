// The parts of the DLPack 1.x binary interface that are used here, as its specification lays them out: the
// tensor descriptor, the two managed forms that come in capsules, and the C exchange table that a tensor type
// may carry. Names follow this project, layouts follow DLPack; nothing here may be reordered.
#pragma once

#include <cstdint>

namespace deep_gemm::python::dlpack {

enum DeviceType : int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13 };

enum TypeCode : uint8_t {
    kInt = 0,
    kUInt = 1,
    kFloat = 2,
    kBfloat = 4,
    kFloat8E4m3fn = 10,
    kFloat8E5m2 = 12,
    kFloat8E8m0fnu = 14,
    kFloat4E2m1fn = 17,
};

struct DataType {
    uint8_t code, bits;
    uint16_t lanes;
};

struct Tensor {
    void* data;
    int32_t device_type, device_id;
    int32_t rank;
    DataType dtype;
    int64_t* shape;
    int64_t* strides;  // in elements; null (before DLPack 1.2): packed row-major
    uint64_t byte_offset;
};

struct Version {
    uint32_t major, minor;
};

struct ManagedTensor {  // capsule "dltensor"
    Tensor tensor;
    void* context;
    void (*deleter)(ManagedTensor*);
};

constexpr uint64_t kReadOnly = 1;

struct ManagedTensorVersioned {  // capsule "dltensor_versioned"
    Version version;
    void* context;
    void (*deleter)(ManagedTensorVersioned*);
    uint64_t flags;
    Tensor tensor;
};

// type(t).__dlpack_c_exchange_api__: a capsule named "dlpack_exchange_api". Functions return 0, or -1 with a
// Python exception set. None of them synchronises.
struct ExchangeApi {
    Version version;
    ExchangeApi* previous;
    void* allocate;
    void* export_managed;
    void* import_managed;
    int (*borrow_tensor)(void* object, Tensor* out);  // may be null; valid while the object lives
    int (*current_stream)(int32_t device_type, int32_t device_id, void** out);
};

constexpr uint32_t kMajorVersion = 1;

}  // namespace deep_gemm::python::dlpack
