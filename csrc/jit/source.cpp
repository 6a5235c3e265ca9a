#include "jit/source.h"

namespace deep_gemm::jit {

KernelSource make_source(const KernelId& id, std::string_view spec_type, std::string_view spec_literal,
                         std::string_view params_type, size_t params_bytes, u32 smem_bytes) {
    return {.name = std::string(id.kernel),
            .code = fmt::format("// deep_gemm {} | {}\n"
                                "#include <{}>\n"
                                "using namespace deep_gemm;\n"
                                "constexpr {} kSpec{};\n"
                                "static_assert(plan_smem(kSpec).bytes == {} && sizeof({}) == {}, "
                                "\"host and device disagree\");\n",
                                DG_VERSION, id.kernel, id.header, spec_type, spec_literal, smem_bytes,
                                params_type, params_bytes),
            .entry = fmt::format("deep_gemm::{}<kSpec>", id.kernel),
            .replay = {}};
}

}  // namespace deep_gemm::jit
