// The cost model that a `device` argument of plans means: a device's, or "90a:132" for one that is not here.
#pragma once

#include "base/error.h"
#include "driver/device.h"
#include "plan/device.h"
#include "python/tensor.h"

#include <charconv>
#include <string>

namespace deep_gemm::python {

inline u32 num_sms_in(const std::string& text, size_t start) {
    u32 num_sms = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data() + start, end, num_sms);
    DG_CHECK(error == std::errc{} && stop == end && num_sms > 0, value,
             "device: got '{}', expected an architecture and its number of multiprocessors, as in "
             "90a:132, or a device, as in cuda:0 or emulator",
             text);
    return num_sms;
}

inline plan::DeviceModel model_of(const py::object& device,
                                  plan::DeviceModel (*find)(std::string_view, u32) = plan::device_model) {
    if (py::isinstance<py::str>(device)) {
        // Plans need no device: "90a:132" names an architecture and its number of multiprocessors.
        const auto text = device.cast<std::string>();
        const size_t colon = text.find(':');
        if (!text.empty() && text[0] >= '0' && text[0] <= '9')
            return find(text.substr(0, colon),
                        num_sms_in(text, colon == std::string::npos ? text.size() : colon + 1));
    }
    const driver::DeviceProperties& properties = device_of(device).properties();
    return find(properties.arch, properties.num_sms);
}

}  // namespace deep_gemm::python
