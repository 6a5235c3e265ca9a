// A dlopened library, closed never: CUDA libraries do not survive dlclose.
#pragma once

#include <dlfcn.h>

#include <string>

namespace deep_gemm::driver {

class SharedLibrary {
  public:
    SharedLibrary() = default;

    // Empty where it does not load; error() then holds the loader's reason.
    static SharedLibrary open(const std::string& path) {
        SharedLibrary library;
        library.path_ = path;
        library.handle_ = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!library.handle_) {
            const char* reason = ::dlerror();
            library.error_ = reason ? reason : "unknown reason";
        }
        return library;
    }

    [[nodiscard]] explicit operator bool() const { return handle_ != nullptr; }
    [[nodiscard]] const std::string& path() const { return path_; }
    [[nodiscard]] const std::string& error() const { return error_; }
    [[nodiscard]] void* symbol(const char* name) const { return ::dlsym(handle_, name); }

    // The file the loader really took (a soname may resolve anywhere); `symbol` is any symbol of it.
    [[nodiscard]] std::string resolved_path(const char* symbol_name) const {
        Dl_info info = {};
        void* address = symbol(symbol_name);
        return address && ::dladdr(address, &info) && info.dli_fname ? info.dli_fname : path_;
    }

  private:
    void* handle_ = nullptr;
    std::string path_, error_;
};

}  // namespace deep_gemm::driver
