// Function headers, variables and instruction bodies. Used by parser.cpp only.
#pragma once

#include "emulator/ptx/ast.h"
#include "emulator/ptx/token_stream.h"

namespace deep_gemm::emulator::ptx {

// `.global .align 4 .b8 name[16] = {1, 2}` up to, not including, the `;` or `,` or `)`.
[[nodiscard]] Variable parse_variable(TokenStream& in);

// From `.entry` or `.func` to the closing brace, or to `;` for a declaration.
[[nodiscard]] std::unique_ptr<Function> parse_function(TokenStream& in, const Module& module);

}  // namespace deep_gemm::emulator::ptx
