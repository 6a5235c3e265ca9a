// The functions of fmt, for all other files, which see declarations only: CMakeLists.txt says why, and asks
// for every inline function of this file to be emitted.
#ifndef FMT_HEADER_ONLY
#define FMT_HEADER_ONLY
#endif
#include <fmt/format.h>
