#include "runtime/model.h"

#include "base/error.h"
#include "runtime/config_keys.h"
#include "runtime/deepseek_v4/config.h"
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
    std::string known;
    for (const Architecture& architecture : kArchitectures) {
        if (type == architecture.model_type) return architecture.parse(keys);
        known += fmt::format("{}'{}'", known.empty() ? "" : " or ", architecture.model_type);
    }
    fail(ErrorKind::value, "{}: got '{}', expected {}; other models have no runtime here",
         keys.what("model_type"), type, known);
}

}  // namespace deep_gemm::runtime
