// What a family planned and loaded for the problems it has met, found again by the problem's fields: after a
// thread's first, a hit builds no string and takes no lock. A process may meet any number of problems (every
// batch size is one), so a table forgets: beyond kMaxPlans the one that no thread has asked it for the
// longest. A forgotten problem is planned again; its kernel stays loaded (jit/cache.h).
#pragma once

#include "base/process_local.h"
#include "driver/device.h"

#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

namespace deep_gemm::op {

constexpr size_t kMaxPlans = 4096;  // of a family; about 2 MB

// Spreads the fields of a key over a hash, one after the other.
class FieldHash {
  public:
    void mix(u64 value) { hash_ = (hash_ ^ value) * 0x9e3779b97f4a7c15ull ^ hash_ >> 29; }
    [[nodiscard]] size_t value() const { return hash_ ^ hash_ >> 32; }

  private:
    u64 hash_ = 0;
};

// What a plan belongs to: a problem on a device, with the spec where the caller forced one.
template <typename Problem, typename Spec>
struct PlanKey {
    Problem problem;
    Device* device = nullptr;
    bool forced = false;
    Spec spec;

    template <typename Call>
    static PlanKey of(const Call& call) {
        PlanKey key{
            .problem = call.problem, .device = call.device, .forced = call.spec != nullptr, .spec = {}};
        if (call.spec) key.spec = *call.spec;
        return key;
    }
    friend bool operator==(const PlanKey&, const PlanKey&) = default;
};

// `Mix` adds what distinguishes problems of a family, beyond what all have.
template <typename Key, auto Mix>
struct PlanKeyHasher {
    size_t operator()(const Key& key) const noexcept {
        FieldHash hash;
        const auto& p = key.problem;
        hash.mix(reinterpret_cast<u64>(key.device) ^ u64{key.forced});
        hash.mix(p.m | u64{p.n} << 32);
        hash.mix(p.k | u64{p.num_groups} << 32);
        hash.mix(p.expected_m | u64{p.num_sms} << 32);
        hash.mix(Mix(p));
        if (key.forced)
            visit_fields([&hash](const char*, auto field) { hash.mix(static_cast<u64>(field)); }, key.spec);
        return hash.value();
    }
};

// The key names the Device, so a forked child, whose Devices are its own, finds nothing of its parent's.
template <typename Key, typename Value, typename Hasher>
class PlanTable {
  public:
    using Entry = std::shared_ptr<const Value>;

    // Empty: not planned, or forgotten. The reference holds until this thread's next call with another key.
    static const Entry& find(const Key& key) {
        Slot& slot = slot_of(key);
        if (slot.entry && slot.key == key) [[likely]]
            return slot.entry;
        Registry& all = process_local<Registry>();
        const std::lock_guard lock(all.mutex);
        const auto found = all.at.find(key);
        if (found == all.at.end()) {
            static const Entry none;
            return none;
        }
        all.newest_first.splice(all.newest_first.begin(), all.newest_first, found->second);
        slot = {key, found->second->second};
        return slot.entry;
    }

    // The value for the key from now on: this one, or another thread's that came first.
    static const Entry& add(const Key& key, Entry value) {
        Slot& slot = slot_of(key);
        Registry& all = process_local<Registry>();
        const std::lock_guard lock(all.mutex);
        auto position = all.at.find(key);
        if (position == all.at.end()) {
            List added;
            added.emplace_front(key, std::move(value));
            position = all.at.emplace(key, added.begin()).first;  // the last that can fail
            all.newest_first.splice(all.newest_first.begin(), added);
        }
        slot = {key, position->second->second};
        if (all.newest_first.size() > kMaxPlans) {
            all.at.erase(all.newest_first.back().first);
            all.newest_first.pop_back();
        }
        return slot.entry;
    }

    [[nodiscard]] static size_t size() {
        Registry& all = process_local<Registry>();
        const std::lock_guard lock(all.mutex);
        return all.newest_first.size();
    }

  private:
    using List = std::list<std::pair<Key, Entry>>;
    struct Registry {
        std::mutex mutex;
        List newest_first;
        std::unordered_map<Key, typename List::iterator, Hasher> at;
    };
    // A thread's own view: one slot for each hash value, the last one wins.
    struct Slot {
        Key key;
        Entry entry;
    };
    static constexpr size_t kSlots = 256;

    static Slot& slot_of(const Key& key) {
        thread_local std::vector<Slot> slots(kSlots);
        return slots[Hasher{}(key) % kSlots];
    }
};

}  // namespace deep_gemm::op
