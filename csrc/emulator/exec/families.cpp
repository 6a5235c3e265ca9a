// Root opcode -> family.
#include "emulator/exec/families.h"

#include <unordered_map>

namespace deep_gemm::emulator {

DecodeFunction find_family(std::string_view root) {
    static const std::unordered_map<std::string_view, DecodeFunction> kTable = {
        {"mov", decode_move},          {"cvta", decode_move},
        {"add", decode_arithmetic},    {"sub", decode_arithmetic},   {"mul", decode_arithmetic},
        {"mad", decode_arithmetic},    {"fma", decode_arithmetic},   {"div", decode_arithmetic},
        {"rem", decode_arithmetic},    {"min", decode_arithmetic},   {"max", decode_arithmetic},
        {"abs", decode_arithmetic},    {"neg", decode_arithmetic},   {"sad", decode_integer},
        {"addc", decode_integer},      {"subc", decode_integer},     {"madc", decode_integer},
        {"mul24", decode_integer},     {"mad24", decode_integer},    {"copysign", decode_float},
        {"dp4a", decode_integer},      {"dp2a", decode_integer},
        {"and", decode_bits},          {"or", decode_bits},          {"xor", decode_bits},
        {"not", decode_bits},          {"cnot", decode_bits},        {"shl", decode_bits},
        {"shr", decode_bits},          {"shf", decode_bits},         {"bfe", decode_bits},
        {"bfi", decode_bits},          {"prmt", decode_bits},        {"lop3", decode_bits},
        {"popc", decode_bits},         {"clz", decode_bits},         {"brev", decode_bits},
        {"bfind", decode_bits},
        {"bmsk", decode_bits},
        {"rcp", decode_float_unary},   {"sqrt", decode_float_unary}, {"rsqrt", decode_float_unary},
        {"ex2", decode_float_unary},   {"lg2", decode_float_unary},  {"sin", decode_float_unary},
        {"cos", decode_float_unary},   {"tanh", decode_float_unary},
        {"setp", decode_compare},      {"set", decode_compare},      {"selp", decode_compare},
        {"slct", decode_compare},      {"testp", decode_compare},
        {"cvt", decode_convert},
        {"ld", decode_load},           {"ldu", decode_load},         {"st", decode_store},
        {"atom", decode_atomic},       {"red", decode_atomic},
        {"shfl", decode_warp},         {"vote", decode_warp},        {"match", decode_warp},
        {"redux", decode_warp},        {"activemask", decode_warp},  {"elect", decode_warp},
        {"bra", decode_control},       {"ret", decode_control},      {"exit", decode_control},
        {"trap", decode_control},      {"call", decode_control},     {"brkpt", decode_control},
        {"bar", decode_barrier},       {"barrier", decode_barrier},
        {"mbarrier", decode_mbarrier}, {"cp", decode_copy},
        {"fence", decode_fence},       {"membar", decode_fence},     {"griddepcontrol", decode_fence},
        {"setmaxnreg", decode_fence},  {"prefetch", decode_fence},   {"prefetchu", decode_fence},
        {"createpolicy", decode_fence}, {"nanosleep", decode_fence}, {"discard", decode_fence},
        {"applypriority", decode_fence}, {"pmevent", decode_fence},
        {"ldmatrix", decode_matrix},   {"stmatrix", decode_matrix},  {"movmatrix", decode_matrix},
        {"mma", decode_matrix},        {"wgmma", decode_wgmma},
        {"mapa", decode_cluster},      {"getctarank", decode_cluster}, {"isspacep", decode_cluster},
    };
    const auto found = kTable.find(root);
    return found == kTable.end() ? nullptr : found->second;
}

}  // namespace deep_gemm::emulator
