// One kernel through NVRTC, uncached: options, key, compile, and the error a failing kernel gets.
#pragma once

#include "base/files.h"
#include "jit/artifact.h"
#include "jit/source.h"

namespace deep_gemm::jit {

[[nodiscard]] std::vector<std::string> compile_options(const Target& target);

// Everything an image depends on but the compiler's version: text, entry, device headers, options,
// architecture. No path is part of it, so a cache folder may be moved or shared.
[[nodiscard]] Digest key_of(const KernelSource& source, const Target& target);

// Throws Error(compile): the log, where the source was saved (under `failed_folder`; empty: the system's
// temporary folder), the replay line.
[[nodiscard]] Artifact compile(const KernelSource& source, const Target& target, const Path& failed_folder);

}  // namespace deep_gemm::jit
