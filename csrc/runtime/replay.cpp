#include "runtime/replay.h"

#include "base/error.h"

namespace deep_gemm::runtime {

Replay::Replay(driver::Device& device) : device_(device), stream_(device.create_stream()) {}

Replay::~Replay() {
    try {
        device_.synchronize(stream_);
        forget();
        device_.destroy_stream(stream_);
    } catch (const Error&) {
        // A broken device reports itself again at the next call; a destructor has nobody to tell.
    }
}

bool Replay::run(const Key& key, const std::function<void()>& issue) {
    const auto found = graphs_.find(key);
    if (found == graphs_.end()) {
        issue();
        graphs_.emplace(key, nullptr);
        return false;
    }
    driver::Graph& graph = found->second;
    if (!graph) {
        device_.begin_capture(stream_);
        try {
            issue();
        } catch (...) {
            device_.destroy_graph(device_.end_capture(stream_));
            throw;
        }
        graph = device_.end_capture(stream_);
    }
    device_.launch_graph(graph, stream_);
    return true;
}

void Replay::forget() {
    for (auto& [key, graph] : graphs_)
        if (graph) device_.destroy_graph(graph);
    graphs_.clear();
}

}  // namespace deep_gemm::runtime
