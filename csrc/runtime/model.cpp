#include "runtime/model.h"

#include "base/error.h"
#include "runtime/config_keys.h"
#include "runtime/deepseek_v4/config.h"
#include "runtime/gguf_model.h"
#include "runtime/qwen3_moe/config.h"

namespace deep_gemm::runtime {

namespace {

struct Architecture {
    std::string_view model_type;
    std::unique_ptr<const ModelConfig> (*parse)(const ConfigKeys& keys);
};

constexpr Architecture kArchitectures[] = {{"deepseek_v4", deepseek_v4::parse},
                                           {"qwen3_moe", qwen3_moe::parse}};

}  // namespace

void ModelState::draft(const TensorView&, const TensorView&, const Pass&) {
    fail(ErrorKind::internal, "model: drafts asked of a model without an MTP block");
}
void ModelState::draft_head(const TensorView&, const TensorView&, void*) {
    fail(ErrorKind::internal, "model: draft logits asked of a model without an MTP block");
}

std::unique_ptr<const ModelConfig> parse_config(const Json& json, std::string_view source) {
    const ConfigKeys keys(json, source);
    const std::string& type = keys.text("model_type");
    std::string known, in_gguf;
    for (const Architecture& architecture : kArchitectures) {
        if (type == architecture.model_type) return architecture.parse(keys);
        const char* const before = known.empty() ? "" : " or ";
        known += fmt::format("{}'{}'", before, architecture.model_type);
        in_gguf += fmt::format("{}'{}'", before, gguf_architecture_of(architecture.model_type));
    }
    fail(
        ErrorKind::value,
        "{}: got '{}', expected {} (general.architecture of a GGUF file: {}); other models have no runtime here",
        keys.what("model_type"), type, known, in_gguf);
}

}  // namespace deep_gemm::runtime
