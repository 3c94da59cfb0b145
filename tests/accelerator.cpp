// A device of its own to torch, "pretend", whose memory is the computer's and whose operations are the CPU's. Noise comes
// from a generator of its own. What is on the wrong device is an error as on a GPU under AsStrictAsAGpu (accelerator.py).
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorShape.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>
#include <ATen/ATen.h>
#include <ATen/native/TensorFactories.h>

namespace {

using at::Tensor;
constexpr auto kKey = c10::DispatchKey::PrivateUse1;
const c10::Device kDevice(c10::DeviceType::PrivateUse1, 0);

struct Memory final : c10::Allocator {
  static void release(void* data) { c10::free_cpu(data); }
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes ? c10::alloc_cpu(bytes) : nullptr;
    return {data, data, &release, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t count) const override { std::memcpy(to, from, count); }
};
Memory memory;

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isAvailable() const override { return true; }
  bool isBuilt() const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(0);
    return generator;
  }
};
Hooks hooks;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::PrivateUse1; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
  c10::Stream exchangeStream(c10::Stream) const override { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

// The same memory, as the CPU sees it.
Tensor here(const Tensor& x) {
  if (!x.is_privateuseone()) return x;
  return at::from_blob(x.data_ptr(), x.sizes(), x.strides(), x.options().device(at::kCPU));
}

Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &memory, c10::DispatchKeySet(kKey),
                                   c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(kKey),
                                           c10::dtype_or_default(dtype));
}

Tensor copy_from(const Tensor& self, const Tensor& to, bool) {
  here(to).copy_(here(self));
  return to;
}

const Tensor& resize_(const Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat>) {
  auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(sizes);
  auto bytes = at::detail::computeStorageNbytesContiguous(sizes, self.itemsize(), self.storage_offset());
  if (bytes > self.storage().nbytes()) {
    auto grown = memory.allocate(bytes);
    std::memcpy(grown.get(), self.storage().data(), self.storage().nbytes());
    self.storage().set_data_ptr_noswap(std::move(grown));
    self.storage().set_nbytes(bytes);
  }
  return self;
}

Tensor copy_from_and_resize(const Tensor& self, const Tensor& to) {
  if (to.sizes() != self.sizes()) to.resize_(self.sizes());
  return copy_from(self, to, false);
}

Tensor& normal_(Tensor& self, double mean, double std, std::optional<at::Generator> generator) {
  here(self).normal_(mean, std, generator.value_or(hooks.getDefaultGenerator(0)));
  return self;
}

Tensor& uniform_(Tensor& self, double low, double high, std::optional<at::Generator> generator) {
  here(self).uniform_(low, high, generator.value_or(hooks.getDefaultGenerator(0)));
  return self;
}

Tensor normal(const Tensor& mean, const Tensor& std, std::optional<at::Generator> generator) {
  return at::normal(here(mean), here(std), generator.value_or(hooks.getDefaultGenerator(0))).to(kDevice);
}

// Of which torch does not say that it changes the running statistics.
std::tuple<Tensor, Tensor, Tensor> batch_norm(const Tensor& x, const std::optional<Tensor>& weight,
                                              const std::optional<Tensor>& bias, const std::optional<Tensor>& mean,
                                              const std::optional<Tensor>& variance, bool training, double momentum,
                                              double epsilon) {
  auto seen = [](const std::optional<Tensor>& t) { return t && t->defined() ? std::optional(here(*t)) : std::nullopt; };
  auto [a, b, c] = at::native_batch_norm(here(x), seen(weight), seen(bias), seen(mean), seen(variance), training,
                                         momentum, epsilon);
  return {a.to(kDevice), b.to(kDevice), c.to(kDevice)};
}

Tensor convolution(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, at::IntArrayRef stride,
                   at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding,
                   int64_t groups) {
  std::optional<Tensor> b;
  if (bias && bias->defined()) b = here(*bias);
  return at::convolution(here(x), here(weight), b, stride, padding, dilation, transposed, output_padding, groups)
      .to(kDevice);
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& gradient, const Tensor& x, const Tensor& weight,
                                                        at::IntArrayRef stride, at::IntArrayRef padding,
                                                        at::IntArrayRef dilation, bool transposed,
                                                        at::IntArrayRef output_padding, int64_t groups,
                                                        std::array<bool, 3> mask) {
  auto [a, b, c] = at::convolution_backward(here(gradient), here(x), here(weight), at::IntArrayRef({weight.size(0)}),
                                            stride, padding, dilation, transposed, output_padding, groups, mask);
  auto back = [](const Tensor& t) { return t.defined() ? t.to(kDevice) : t; };
  return {back(a), back(b), back(c)};
}

Tensor& set_storage(Tensor& self, c10::Storage storage) {
  return at::native::set_storage_cpu_(self, storage, 0, {static_cast<int64_t>(storage.nbytes() / self.itemsize())}, {1});
}

Tensor& set_storage_offset(Tensor& self, c10::Storage storage, int64_t offset, at::IntArrayRef size,
                           at::IntArrayRef stride) {
  return at::native::set_storage_cpu_(self, storage, offset, size, stride);
}

void elsewhere(const c10::OperatorHandle& op, torch::jit::Stack* stack) { at::native::cpu_fallback(op, stack); }

struct Start {
  Start() {
    c10::register_privateuse1_backend("pretend");
    at::RegisterPrivateUse1HooksInterface(&hooks);
    c10::SetAllocator(c10::DeviceType::PrivateUse1, &memory);
  }
} start;

at::Generator noise() { return hooks.getDefaultGenerator(0); }

TORCH_LIBRARY(pretend, m) {
  m.def("manual_seed(int seed) -> ()", [](int64_t seed) { noise().set_current_seed(seed); });
  m.def("get_state() -> Tensor", [] { return noise().get_state(); });
  m.def("set_state(Tensor state) -> ()", [](const Tensor& state) { noise().set_state(state); });
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&elsewhere>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("unfold", at::native::unfold);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage", &set_storage);
  m.impl("set_.source_Storage_storage_offset", &set_storage_offset);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("normal_", &normal_);
  m.impl("normal.Tensor_Tensor", &normal);
  m.impl("uniform_", &uniform_);
  m.impl("native_batch_norm", &batch_norm);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}

}  // namespace
