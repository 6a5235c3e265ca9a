// A stream of its own, and steps on it that are replayed as graphs.
#pragma once

#include "driver/device.h"

#include <functional>
#include <map>
#include <utility>

namespace deep_gemm::runtime {

class Replay {
  public:
    using Key = std::pair<u32, u32>;  // whatever a step's list of launches depends on

    explicit Replay(driver::Device& device);
    ~Replay();
    Replay(const Replay&) = delete;
    Replay& operator=(const Replay&) = delete;

    [[nodiscard]] driver::Stream stream() const { return stream_; }
    // Does what `issue` does. The first time of a key it runs as it is, which compiles its kernels; the
    // second time it is captured, and from then on it is one graph. True: a graph was launched.
    bool run(const Key& key, const std::function<void()>& issue);
    // Drops all graphs: their operations have changed.
    void forget();

  private:
    driver::Device& device_;
    driver::Stream stream_;
    std::map<Key, driver::Graph> graphs_;  // null: ran once
};

}  // namespace deep_gemm::runtime
