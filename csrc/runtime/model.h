// What the runtime knows of a model, whatever its architecture. An architecture is a folder that implements
// these three interfaces and one row of the table in model.cpp; engines and sessions see nothing else of it.
//   ModelConfig   config.json, checked: what the checkpoint must hold
//   Model         weights on a device, immutable, shared by sessions
//   ModelState    caches and activations of one session (or of a batch of them)
#pragma once

#include "base/json.h"
#include "driver/device.h"
#include "op/api.h"
#include "runtime/inventory.h"
#include "runtime/pages.h"

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace deep_gemm::runtime {

constexpr u32 kMaxWindow = 8;  // rows of a speculative window: one token and its drafts

// How numbers are rounded between kernels.
//   exact      fp32 everywhere: the model as a function of its stored weights
//   released   as the model was released to run: bf16 activations, FP8 into low-precision matrices, and the
//              architecture's own narrow caches
//   fp8_cache  fp32 with the released caches, where the architecture has narrow ones
enum class Numerics : u8 { released, exact, fp8_cache };
[[nodiscard]] constexpr Format activations_of(Numerics numerics) {
    return numerics == Numerics::released ? Format::bf16 : Format::fp32;
}

struct ModelFacts {
    std::string architecture;  // "DeepSeek-V4", for messages
    u32 vocab = 0, num_layers = 0, max_positions = 0;
    std::optional<u32> bos;      // what every text begins with, if anything
    u32 eos = 0;                 // what ends an answer
    std::vector<i64> row_shape;  // of a token between embedding and head: [hidden] or [streams, hidden]
    bool drafts = false;         // has an MTP block, which proposes tokens for speculative decoding
};

// Gets the ids that a pass chooses, int32 [t, k], under names ("layers.3.picks", "layers.3.experts"), once
// what finds them is on the stream.
using Observer = std::function<void(const std::string& name, const TensorView& chosen)>;

// The rows of one forward pass; all views have t rows.
struct Pass {
    i64 t = 0;
    TensorView tokens, positions;  // int32 [t]
    TensorView sequences = {};     // int32 [t]: which sequence of the state; absent: the first one
    bool journal = false;          // restore() may follow; t <= kMaxWindow
    i64 journal_row = 0;           // of the pass's first row, where several passes have one journal
    const Observer* observer = nullptr;
    void* stream = nullptr;
};

struct StateSizes {
    u32 sequences = 1;
    u32 context = 0;      // tokens of a sequence
    u32 max_rows = 0;     // of one forward pass
    bool drafts = false;  // with the MTP block's own cache
};

class ModelState {
  public:
    using Visit = std::function<void(u64 address, u64 bytes)>;
    using NamedVisit = std::function<void(std::string_view name, u64 address, u64 bytes)>;

    virtual ~ModelState() = default;

    // Where the caches that grow are: every sequence must hold the pages of the tokens that a pass adds.
    [[nodiscard]] PageTable& pages() { return pages_; }
    [[nodiscard]] const PageTable& pages() const { return pages_; }

    // The pass's tokens through embedding and layers, into x [t, row_shape]; they join the caches.
    virtual void forward(const TensorView& x, const Pass& pass) = 0;
    // logits fp32 [n, vocab] of rows x [n, row_shape]; n <= the rows of a pass.
    virtual void head(const TensorView& x, const TensorView& logits, void* stream) = 0;
    // Takes the caches back to the state after row row[0] (int32 [1]) of the last pass with a journal.
    virtual void restore(const TensorView& row, void* stream) = 0;

    // The MTP block: row i of x gets what follows from row i of `hidden` and token i of the pass, and the
    // logits of draft rows. x may be `hidden`. Only where the model drafts.
    virtual void draft(const TensorView& hidden, const TensorView& x, const Pass& pass);
    virtual void draft_head(const TensorView& x, const TensorView& logits, void* stream);

    // True: the caches only grow, so that the state after n tokens is also there after more of them.
    [[nodiscard]] virtual bool only_grows() const = 0;
    // All of one sequence but what only grows.
    [[nodiscard]] virtual std::vector<TensorView> fixed_state() const = 0;
    // Every cache, whole, those of other states too: for whoever fills them without computing.
    [[nodiscard]] virtual std::vector<TensorView> caches() const = 0;
    // What only grows, as far as `length` tokens of the first sequence see it.
    virtual void visit_grown(u32 length, const Visit& visit) const = 0;
    // All that tokens after the first `length` of the first sequence depend on, as bytes that are equal where
    // the states are; pieces of one tensor follow each other under its name ("layers.3.keys").
    virtual void visit_visible(u32 length, const NamedVisit& visit) const = 0;

  protected:
    ModelState(PagePool& pool, const StateSizes& sizes) : pages_(pool, sizes.sequences, sizes.context) {}

  private:
    PageTable pages_;
};

class Model {
  public:
    virtual ~Model() = default;
    [[nodiscard]] virtual const ModelFacts& facts() const = 0;
    [[nodiscard]] virtual u64 weight_bytes() const = 0;  // on the device
    // The model and the pool must outlive their states.
    [[nodiscard]] virtual std::unique_ptr<ModelState> make_state(PagePool& pool,
                                                                 const StateSizes& sizes) const = 0;
};

class Loader;

class ModelConfig {
  public:
    virtual ~ModelConfig() = default;
    [[nodiscard]] virtual const ModelFacts& facts() const = 0;
    [[nodiscard]] virtual std::vector<Expected> expected_tensors() const = 0;
    // The caches that grow, which a pool is made of.
    [[nodiscard]] virtual std::vector<PageShape> page_shapes(Numerics numerics) const = 0;
    // Error(value) for numerics that the architecture does not have.
    [[nodiscard]] virtual std::unique_ptr<const Model> load(Loader& loader, Numerics numerics) const = 0;
};

// By config.json's model_type; Error(value) names the architectures there are.
[[nodiscard]] std::unique_ptr<const ModelConfig> parse_config(const Json& json, std::string_view source);

}  // namespace deep_gemm::runtime
