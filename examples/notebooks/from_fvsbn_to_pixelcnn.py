# %% [markdown]
# # from_fvsbn_to_pixelcnn

# %%
print(1)
